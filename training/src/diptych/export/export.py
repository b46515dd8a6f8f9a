"""Assembles a deployable Triton repository: the hand-written configs, and a version directory per model."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.data.catalogue import read_split
from diptych.data.examples import Example, as_served, choose_examples, complete_pairs, read_examples
from diptych.data.labels import LABELS_FILE, write_labels
from diptych.export.evidence import gather_evidence
from diptych.export.gate import Evidence, Gate, Gated
from diptych.export.judgement import Limits
from diptych.export.manifest import build_manifest
from diptych.export.precision import FP32, Precision, Runtime, Target
from diptych.runs.run import Run
from diptych_serving import metering
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import save_snapshot
from diptych_serving.progress import warn
from diptych_serving.release.in_process import ask_in_process
from diptych_serving.repository import golden
from diptych_serving.repository.files import replace_text
from diptych_serving.repository.golden import GOLDEN_FILE
from diptych_serving.repository.layout import (
    CONFIG_FILE,
    ENSEMBLE,
    IMAGE_ENCODER,
    MANIFEST_FILE,
    PREPROCESS,
    TALLY,
    describe_labels,
    read_manifest,
    require_repository,
    serving_version,
    write_loaded,
    write_pins,
)
from diptych_serving.repository.lock import only_one
from diptych_serving.repository.settings import Settings, apply_settings
from diptych_serving.repository.signing import sign_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# How large the image encoder's warm-up pictures are.
WARMUP_SIZE = re.compile(r"dims: \[ 3, \d+, \d+ \]")
PRESENT_AT_WARMUP = 'input_data_file: "true"'


def export(
    run: Run,
    repository: Path,
    precision: Precision = FP32,
    settings: Settings | None = None,
    *,
    target: Target = "cpu",
    runtime: Runtime = "torchscript",
    limits: Limits | None = None,
    catalogue: Path | None = None,
    allow_new_labels: bool = False,
    sign_with: Ed25519PrivateKey | None = None,
    from_table: bool = False,
) -> tuple[int, Gated]:
    """Add the run to a repository as its next version, or make a new repository.

    Everything is written beside and moved into place. What a repository serves stays as it is until
    `diptych release activate`; its configs change only where settings are given, or where the warm-up
    pictures would not suit both versions.
    target            the kind of device that will serve it; one repository is for one kind
    runtime           what runs it on CPUs where there is no native backend
    limits            how much worse answers in fewer bits may be
    catalogue         a table of more items to judge them by
    allow_new_labels  add it even where its labels are not those that the repository serves
    sign_with         the key that vouches for the manifest, and with it for all files
    from_table        compare on the config's validation table, even where the run keeps examples of its own
    returns           the version and what the parity gate let through
    """
    version = _next_version(repository)
    if version > 1:
        _require_same_target(target, repository)
        if not allow_new_labels:
            _require_same_labels(run, repository)
    examples = _examples(run, from_table=from_table)
    run = _as_served(run)
    examples = as_served(examples, run.preprocessor)
    evidence = gather_evidence(run, examples, catalogue, limits or Limits(), from_table=from_table)
    try:
        repository.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-") as staging:
            staged = Path(staging) / "repository"
            gated = _stage(run, version, staged, precision, target, runtime, evidence, sign_with)
            if version == 1:
                staged.chmod(0o755)
                staged.rename(repository)
            else:
                with only_one(repository):
                    _add_version(staged, version, repository)
            if settings is not None:
                apply_settings(settings, repository)
    except OSError as error:
        raise UserError(
            f"{repository}: version {version} could not be added ({error}); nothing was changed"
        ) from error
    return version, gated


def _stage(
    run: Run,
    version: int,
    staged: Path,
    precision: Precision,
    target: Target,
    runtime: Runtime,
    evidence: Evidence,
    sign_with: Ed25519PrivateKey | None,
) -> Gated:
    """Write one complete repository that holds this version alone."""
    _copy_source(staged)
    directories = {model.name: model / str(version) for model in sorted(staged.iterdir())}
    for directory in directories.values():
        directory.mkdir()
    gated = Gate(run, evidence, directories).write(precision, runtime)

    # Triton takes model.py from the version, so that each version keeps the shell that it was exported with.
    for step in (PREPROCESS, TALLY):
        (staged / step / "model.py").rename(directories[step] / "model.py")
        shutil.copy2(metering.__file__, directories[step])
    run.preprocessor.save(directories[PREPROCESS])
    save_snapshot(directories[PREPROCESS])
    for model in (ENSEMBLE, TALLY):
        write_labels(run.labels, directories[model] / LABELS_FILE)
    write_pins(staged, version)
    write_loaded(staged, [version])
    _size_warmup(staged, run.preprocessor.spec.image_size_px)
    golden.record(
        directories[ENSEMBLE] / GOLDEN_FILE,
        [
            (image, text.encode())
            for image, text in complete_pairs(
                evidence.examples, run.preprocessor.spec.image_size_px, golden.NUM_ITEMS
            )
        ],
        ask_in_process(gated.files, run.preprocessor),
        max_difference=gated.max_difference,
    )
    files = [path for path in staged.rglob("*") if path.is_file()]
    manifest = build_manifest(run, version, repository=staged, files=files, gated=gated, target=target)
    path = directories[ENSEMBLE] / MANIFEST_FILE
    path.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    if sign_with is not None:
        sign_manifest(path, sign_with)
    return gated


def _copy_source(staged: Path) -> None:
    """The configs and the preprocessor's model.py, as they stand in git under model_repository/."""
    with resources.as_file(resources.files("diptych") / "model_repository") as source:
        shutil.copytree(source, staged, ignore=shutil.ignore_patterns("__pycache__"))


def _add_version(staged: Path, version: int, repository: Path) -> None:
    """Move the new version directories in. Takes all back where one fails."""
    moved = []
    try:
        # The ensemble's last: a version without its manifest is none, should this be interrupted.
        for model in sorted(staged.iterdir(), key=lambda path: path.name == ENSEMBLE):
            target = repository / model.name / str(version)
            (model / str(version)).rename(target)
            moved.append(target)
        _keep_warmup_safe(staged, repository)
    except BaseException:
        for target in moved:
            shutil.rmtree(target)
        raise


def _keep_warmup_safe(staged: Path, repository: Path) -> None:
    """One warm-up serves all versions, and tritonserver does not start where one fails. So pictures of a size
    that one of the versions may not take are marked absent, and the backbone is left cold.
    """
    new, old = (path / IMAGE_ENCODER / CONFIG_FILE for path in (staged, repository))
    text = old.read_text("utf-8")
    if WARMUP_SIZE.findall(text)[:1] != WARMUP_SIZE.findall(new.read_text("utf-8"))[:1]:
        replace_text(old, text.replace(PRESENT_AT_WARMUP, "zero_data: true"))


def _size_warmup(staged: Path, size_px: int) -> None:
    config = staged / IMAGE_ENCODER / CONFIG_FILE
    dims = f"dims: [ 3, {size_px}, {size_px} ]"
    replace_text(config, WARMUP_SIZE.sub(dims, config.read_text("utf-8")))


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
    require_repository(repository)
    return max(versions) + 1


def _require_same_target(target: Target, repository: Path) -> None:
    """All versions share the configs, and with them the number of instances."""
    serving = serving_version(repository)
    held = read_manifest(repository, serving).get("target", target)
    if held != target:
        raise UserError(
            f"{repository}: version {serving}, which serves, was exported with --target {held}. "
            f"Export for --target {target} into another directory with --to"
        )


def _require_same_labels(run: Run, repository: Path) -> None:
    serving = serving_version(repository)
    change = describe_labels(read_manifest(repository, serving)["labels"], run.labels)
    if change:
        raise UserError(
            f"{repository}: version {serving}, which serves, has other labels than {run.directory}: "
            f"it {change}. Callers depend on names and order. "
            "Export it elsewhere with --to, or here with --allow-new-labels"
        )


def _as_served(run: Run) -> Run:
    """With the limits of the server, which its callers meet."""
    return dataclasses.replace(run, preprocessor=run.preprocessor.within(run.config.limits.serving))


def _examples(run: Run, *, from_table: bool) -> list[Example]:
    """Validation items: those that the run keeps, or where it keeps none those of its table."""
    examples = None if from_table else read_examples(run.directory)
    if examples is None:
        data = run.config.data
        items = read_split(data.val_csv, data, labels=run.labels, preprocessor=run.preprocessor)
        examples = choose_examples(items, run.preprocessor)
    for index, name in enumerate(("an image", "a text")):
        if not any(example[index] for example in examples):
            warn(f"{run.directory}: no validation item has {name}: answers to {name} alone mean nothing")
    return examples
