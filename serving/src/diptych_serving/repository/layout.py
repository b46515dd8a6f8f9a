"""Reads and changes the versions of a repository: those it holds, those Triton loads, the one that serves.

The ensemble's pins name the version that serves. Each step's version_policy names the versions that Triton
loads, so that a version that was never activated cannot keep a server from starting.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych_serving.errors import UserError
from diptych_serving.repository.files import read_bytes, read_text, replace_text

ENSEMBLE = "classifier"
IMAGE_ENCODER, TEXT_ENCODER, FUSION_HEAD = TORCHSCRIPT = ("image_encoder", "text_encoder", "fusion_head")
PREPROCESS, TALLY = "preprocess", "tally"
STEPS = (PREPROCESS, *TORCHSCRIPT, TALLY)
TORCHSCRIPT_FILE = "model.pt"
CONFIG_FILE, MANIFEST_FILE, HISTORY_FILE = "config.pbtxt", "manifest.json", "activations.txt"
SIGNATURE_FILE = "manifest.json.sig"
# One for each step, the ensemble's own version, and its labels, so that all change in one rename.
PINS = re.compile(r'^(\s*(?:model_version: |versions: |label_filename: "))(\d+)', re.MULTILINE)
NUM_PINS = len(STEPS) + 2
LOADED = re.compile(r"^(version_policy \{ specific \{ versions: )\[[\d, ]*\]", re.MULTILINE)


def config_of(repository: Path, model: str) -> Path:
    """The config of one model, for all its versions."""
    return repository / model / CONFIG_FILE


def require_repository(repository: Path) -> None:
    """Raise UserError if a config is missing."""
    if not config_of(repository, ENSEMBLE).is_file():
        raise UserError(
            f"{repository}: not a model repository. Make one: diptych export RUN --to {repository}"
        )
    if missing := [step for step in STEPS if not config_of(repository, step).is_file()]:
        raise UserError(
            f"{repository}: has no {missing[0]}; it is older than that step, or incomplete. "
            "Export into a new directory."
        )


def held_versions(repository: Path) -> list[int]:
    """Versions with a manifest, the oldest first."""
    require_repository(repository)
    return sorted(int(path.parent.name) for path in (repository / ENSEMBLE).glob(f"*/{MANIFEST_FILE}"))


def serving_version(repository: Path) -> int:
    """The version that the ensemble's pins name."""
    require_repository(repository)
    path = config_of(repository, ENSEMBLE)
    pins = [match[2] for match in PINS.finditer(read_text(path))]
    if len(set(pins)) != 1:
        raise UserError(
            f"{path}: pins {len(set(pins))} versions ({', '.join(sorted(set(pins)))}); expected one"
        )
    if len(pins) != NUM_PINS:
        raise UserError(
            f"{path}: {len(pins)} lines name a version; expected {NUM_PINS}: one for each step, the "
            "ensemble's own, and its label_filename. Write it as in model_repository/, or export anew"
        )
    return int(pins[0])


def loaded_by_step(repository: Path) -> dict[str, list[int]]:
    """The versions that Triton loads of each step, as its config names them."""
    require_repository(repository)
    loaded = {}
    for step in STEPS:
        path = config_of(repository, step)
        match = LOADED.search(read_text(path))
        if match is None:
            raise UserError(
                f"{path}: its version_policy is not of the form `specific {{ versions: [ 1, 2 ] }}`"
            )
        loaded[step] = [int(number) for number in re.findall(r"\d+", match.group())]
    return loaded


def loaded_versions(repository: Path) -> list[int]:
    """The versions that Triton loads of any step."""
    return sorted({version for versions in loaded_by_step(repository).values() for version in versions})


def write_pins(repository: Path, version: int) -> None:
    """Let the ensemble name another version of every step: one rename."""
    path = config_of(repository, ENSEMBLE)
    replace_text(path, PINS.sub(rf"\g<1>{version}", read_text(path)))


def write_loaded(repository: Path, versions: Iterable[int]) -> None:
    """Let Triton load these versions of every step."""
    for step in STEPS:
        write_loaded_of(repository, step, sorted(set(versions)))


def write_loaded_of(repository: Path, step: str, versions: Iterable[int]) -> None:
    """Let Triton load these versions of one step."""
    path = config_of(repository, step)
    listed = f"[ {', '.join(map(str, versions))} ]"
    replace_text(path, LOADED.sub(rf"\g<1>{listed}", read_text(path)))


def read_manifest(repository: Path, version: int) -> dict[str, Any]:
    """A version's manifest. Raises UserError if the repository does not hold the version."""
    held = held_versions(repository)
    if version not in held:
        raise UserError(
            f"{repository}: has no version {version}; it has {', '.join(map(str, held)) or 'none'}"
        )
    return parse_manifest(repository / ENSEMBLE / str(version) / MANIFEST_FILE)


def parse_manifest(path: Path) -> dict[str, Any]:
    """A manifest's content. Raises UserError if it is damaged."""
    try:
        manifest: dict[str, Any] = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); the file is damaged or half copied") from None
    return manifest


def describe_label_change(repository: Path, before: int, version: int) -> str | None:
    """How another version's labels differ, as text; None if they are the same in the same order."""
    old, new = (read_manifest(repository, each)["labels"] for each in (before, version))
    return describe_labels(old, new)


def describe_labels(old: Sequence[str], new: Sequence[str]) -> str | None:
    """How `new` differs from `old`, as text; None if it does not."""
    changes = {
        "adds": [label for label in new if label not in old],
        "lacks": [label for label in old if label not in new],
    }
    words = [f"{verb} {', '.join(labels)}" for verb, labels in changes.items() if labels]
    kept = [label for label in old if label in new]
    if kept != [label for label in new if label in old]:
        words.append(f"has the order {', '.join(new)}")
    return "; ".join(words) or None


def verify_checksums(repository: Path, manifest: Mapping[str, Any]) -> None:
    """Check that every file of the version is the exported one: TorchScript is code."""
    for name, expected in manifest["sha256"].items():
        path = repository / name
        if path.name == CONFIG_FILE:
            continue  # pins and settings change it, by design
        if not path.is_file():
            raise UserError(f"{path}: missing, though version {manifest['version']} was exported with it")
        if sha256(path) != expected:
            raise UserError(
                f"{path}: its SHA-256 is not the one in the manifest of version {manifest['version']}: "
                "the file is damaged, half copied or not the one that was exported"
            )


def sha256(path: Path) -> str:
    """Hex digest of a file's content. Raises UserError if it cannot be read."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def read_activations(repository: Path) -> list[int]:
    """The versions that served before, the oldest first, for `rollback`."""
    path = repository / ENSEMBLE / HISTORY_FILE
    return [int(line) for line in read_text(path).split()] if path.is_file() else []


def write_activations(repository: Path, versions: Sequence[int]) -> None:
    """Replace the history."""
    path = repository / ENSEMBLE / HISTORY_FILE
    if not versions:
        path.unlink(missing_ok=True)
        return
    replace_text(path, "".join(f"{version}\n" for version in versions), like=config_of(repository, ENSEMBLE))


def previous_version(repository: Path) -> int:
    """The version that served before this one. Raises UserError if there is none."""
    serving, held = serving_version(repository), held_versions(repository)
    before = [version for version in read_activations(repository) if version != serving and version in held]
    if not before:
        raise UserError(f"{repository}: no version served before {serving}; it holds {held}")
    return before[-1]


def prune(repository: Path, keep: int, in_use: Collection[int] = ()) -> list[int]:
    """Delete all but the newest `keep` versions, those that the configs name, and those in use elsewhere.

    in_use   versions that a running server has loaded
    returns  the deleted ones
    """
    held = held_versions(repository)
    named = {*loaded_versions(repository), serving_version(repository)}
    doomed = sorted(set(held) - set(held[-keep:]) - named - set(in_use))
    for version in doomed:
        # The manifest first: without it a half-deleted directory is not a version.
        (repository / ENSEMBLE / str(version) / MANIFEST_FILE).unlink(missing_ok=True)
        for model in (ENSEMBLE, *STEPS):
            with contextlib.suppress(FileNotFoundError):  # of an export that was interrupted
                shutil.rmtree(repository / model / str(version))
    return doomed
