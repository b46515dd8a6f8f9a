"""Damages an exported version in three ways that an activation must find, and restores it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from diptych_serving.repository.layout import ENSEMBLE, MANIFEST_FILE, STEPS, sha256

Spoil = Callable[[Path, int], None]


def break_torchscript(repository: Path, version: int) -> None:
    """A file that is whole, says its manifest, and that no libtorch reads."""
    name = f"fusion_head/{version}/model.pt"
    path = repository / name
    _overwrite(path, path.read_bytes()[:1000])
    _vouch_for(repository, version, name)


def break_checksum(repository: Path, version: int) -> None:
    """One byte too many in a file."""
    path = repository / f"image_encoder/{version}/model.pt"
    _overwrite(path, path.read_bytes() + b"\0")


def break_golden(repository: Path, version: int) -> None:
    """Another answer than the one that the model gives, recorded for one request."""
    name = f"{ENSEMBLE}/{version}/golden.json"
    golden = json.loads((repository / name).read_text("utf-8"))
    golden["requests"][4]["probabilities"].reverse()
    _overwrite(repository / name, json.dumps(golden).encode())
    _vouch_for(repository, version, name)


# What is spoilt -> what the refusal says.
REFUSALS: dict[Spoil, str] = {
    break_torchscript: "load_model fusion_head",
    break_checksum: "its SHA-256 is not the one in the manifest of version",
    break_golden: r"differs by 0\.\d+ in a probability from the one recorded at export",
}


@contextlib.contextmanager
def spoilt(repository: Path, version: int, spoil: Spoil) -> Iterator[None]:
    """Inside the `with`, the version is spoilt; after it, it is as it was."""
    with tempfile.TemporaryDirectory(prefix="diptych-spoilt-") as aside:
        for model in (ENSEMBLE, *STEPS):
            shutil.copytree(repository / model / str(version), Path(aside, model))
        spoil(repository, version)
        try:
            yield
        finally:
            for model in (ENSEMBLE, *STEPS):
                shutil.rmtree(repository / model / str(version))
                shutil.copytree(Path(aside, model), repository / model / str(version))


def _vouch_for(repository: Path, version: int, name: str) -> None:
    manifest = repository / ENSEMBLE / str(version) / MANIFEST_FILE
    tree = json.loads(manifest.read_text("utf-8"))
    tree["sha256"][name] = sha256(repository / name)
    _overwrite(manifest, json.dumps(tree).encode())


def _overwrite(path: Path, content: bytes) -> None:
    """As a new file: a server may have the old one mapped into its memory."""
    unfinished = path.with_suffix(".spoilt")
    unfinished.write_bytes(content)
    unfinished.replace(path)
