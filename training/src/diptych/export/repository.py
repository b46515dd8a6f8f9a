"""Assembles a deployable Triton repository: the hand-written configs, and a version directory per model."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from importlib import resources
from pathlib import Path

import torch

from diptych import preprocessing
from diptych.data.catalogue import read_split
from diptych.data.items import Item
from diptych.dataset import to_inputs
from diptych.errors import UserError
from diptych.export.manifest import MANIFEST_FILE, build_manifest
from diptych.export.parity import Parity, expect, measure_parity, require_parity, sample_rows
from diptych.export.torchscript import FUSION_HEAD, Parts, eager_parts, to_torchscript
from diptych.run import LABELS_FILE, Run

ENSEMBLE, PREPROCESS = "classifier", "preprocess"
CONFIG_FILE = "config.pbtxt"
TORCHSCRIPT_FILE = "model.pt"
# Where the ensemble's config says which release it serves.
PINS = re.compile(r"^(\s*(?:model_version|versions): )\d+", re.MULTILINE)


def export(run: Run, repository: Path) -> tuple[int, list[Parity]]:
    """Add the run to a repository as its next version, or make a new repository.

    Everything is written beside and moved into place; the ensemble's pins move last, in one rename.
    Returns the version and the parity figures.
    """
    version = _next_version(repository)
    _require_same_labels(run, repository)
    try:
        repository.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-") as staging:
            staged = Path(staging) / "repository"
            parity = _stage(run, version, staged)
            if version == 1:
                staged.chmod(0o755)
                staged.rename(repository)
            else:
                _add_version(staged, version, repository)
    except OSError as error:
        raise UserError(
            f"{repository}: version {version} could not be added ({error}); nothing was changed"
        ) from error
    return version, parity


def _stage(run: Run, version: int, staged: Path) -> list[Parity]:
    """Write one complete repository that holds this version alone."""
    _copy_source(staged)
    rows = sample_rows(_validation_items(run), run.preprocessor)
    expectations = expect(eager_parts(run.model.eval()), rows)
    parts = to_torchscript(run.model, to_inputs(rows["both"]))
    parity = [measure_parity("TorchScript", parts, expectations)]
    require_parity(parity[0])

    directories = {model.name: model / str(version) for model in sorted(staged.iterdir())}
    for directory in directories.values():
        directory.mkdir()
    for name, part in parts.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
            torch.jit.save(part, directories[name] / TORCHSCRIPT_FILE)
    parity.append(measure_parity("reloaded files", _reload(directories), expectations))
    require_parity(parity[1])

    # Triton takes model.py from the version, so that each version keeps the shell that it was exported with.
    (staged / PREPROCESS / "model.py").rename(directories[PREPROCESS] / "model.py")
    run.preprocessor.save(directories[PREPROCESS])
    shutil.copy2(preprocessing.__file__, directories[PREPROCESS])
    shutil.copy2(run.directory / LABELS_FILE, staged / FUSION_HEAD)
    _pin(staged, version)
    files = [path for path in staged.rglob("*") if path.is_file()]
    manifest = build_manifest(run, version, repository=staged, files=files, parts=parts, parity=parity)
    (directories[ENSEMBLE] / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return parity


def _copy_source(staged: Path) -> None:
    """The configs and the preprocessor's model.py, as they stand in git under model_repository/."""
    with resources.as_file(resources.files("diptych") / "model_repository") as source:
        shutil.copytree(source, staged, ignore=shutil.ignore_patterns("__pycache__"))


def _add_version(staged: Path, version: int, repository: Path) -> None:
    """Move the new version directories in, then the ensemble's config. Takes all back where one fails."""
    moved = []
    try:
        for model in sorted(staged.iterdir()):
            target = repository / model.name / str(version)
            (model / str(version)).rename(target)
            moved.append(target)
        (staged / ENSEMBLE / CONFIG_FILE).replace(repository / ENSEMBLE / CONFIG_FILE)
    except OSError:
        for target in moved:
            shutil.rmtree(target)
        raise


def _pin(staged: Path, version: int) -> None:
    config = staged / ENSEMBLE / CONFIG_FILE
    config.write_text(PINS.sub(rf"\g<1>{version}", config.read_text("utf-8")), "utf-8")


def _next_version(repository: Path) -> int:
    if not repository.exists():
        return 1
    if not (repository / ENSEMBLE / CONFIG_FILE).is_file():
        raise UserError(
            f"{repository}: exists and is not a Diptych repository; name a new directory with --to"
        )
    versions = [int(path.name) for path in repository.glob("*/*") if path.name.isdecimal()]
    if not versions:
        raise UserError(
            f"{repository}: holds configs but no version of a model; name a new directory with --to"
        )
    return max(versions) + 1


def _require_same_labels(run: Run, repository: Path) -> None:
    """labels.txt is per model, not per version, and clients depend on its order."""
    path = repository / FUSION_HEAD / LABELS_FILE
    if path.is_file() and path.read_text("utf-8").splitlines() != run.labels:
        raise UserError(
            f"{repository}: serves other labels ({', '.join(path.read_text('utf-8').splitlines())}) than "
            f"{run.directory} ({', '.join(run.labels)}). Other labels are another model: export it with --to"
        )


def _validation_items(run: Run) -> list[Item]:
    data = run.config.data
    return read_split(data.val_csv, data, labels=run.labels, spec=run.preprocessor.spec)


def _reload(directories: dict[str, Path]) -> Parts:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        return {
            name: torch.jit.load(directory / TORCHSCRIPT_FILE)
            for name, directory in directories.items()
            if (directory / TORCHSCRIPT_FILE).is_file()
        }
