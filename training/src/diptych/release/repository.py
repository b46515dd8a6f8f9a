"""What a repository says about its versions: those it holds, those Triton loads, the one that serves.

The ensemble's pins name the one that serves. Each step's version_policy names those that Triton loads, so
that a version which was exported but never activated cannot hinder a server that starts.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.errors import UserError

ENSEMBLE = "classifier"
STEPS = ("preprocess", "image_encoder", "text_encoder", "fusion_head", "tally")
CONFIG_FILE, MANIFEST_FILE, HISTORY_FILE = "config.pbtxt", "manifest.json", "activations.txt"
# One for each step, the ensemble's own version, and its labels, which so change in the same rename.
PINS = re.compile(r'^(\s*(?:model_version: |versions: |label_filename: "))(\d+)', re.MULTILINE)
NUM_PINS = len(STEPS) + 2
LOADED = re.compile(r"^(version_policy \{ specific \{ versions: )\[[\d, ]*\]", re.MULTILINE)


def config_of(repository: Path, model: str) -> Path:
    """Of one model; the same file for all its versions."""
    return repository / model / CONFIG_FILE


def require_repository(repository: Path) -> None:
    """Raise UserError where a config is missing."""
    if not config_of(repository, ENSEMBLE).is_file():
        raise UserError(
            f"{repository}: not a model repository. Make one: diptych export RUN --to {repository}"
        )
    if missing := [step for step in STEPS if not config_of(repository, step).is_file()]:
        raise UserError(
            f"{repository}: has no {missing[0]}; it is older than that step, or not whole. "
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
    pins = [match[2] for match in PINS.finditer(path.read_text("utf-8"))]
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


def loaded_versions(repository: Path) -> list[int]:
    """The versions of each step that Triton loads."""
    path = config_of(repository, STEPS[0])
    match = LOADED.search(path.read_text("utf-8"))
    if match is None:
        raise UserError(f"{path}: its version_policy is not of the form `specific {{ versions: [ 1, 2 ] }}`")
    return [int(number) for number in re.findall(r"\d+", match.group())]


def write_pins(repository: Path, version: int) -> None:
    """Let the ensemble name another version of every step: one rename."""
    path = config_of(repository, ENSEMBLE)
    replace_text(path, PINS.sub(rf"\g<1>{version}", path.read_text("utf-8")))


def write_loaded(repository: Path, versions: Iterable[int]) -> None:
    """Let Triton load these versions of each step."""
    listed = f"[ {', '.join(map(str, sorted(set(versions))))} ]"
    for step in STEPS:
        path = config_of(repository, step)
        replace_text(path, LOADED.sub(rf"\g<1>{listed}", path.read_text("utf-8")))


def read_manifest(repository: Path, version: int) -> dict[str, Any]:
    """What a version is made of. Raises UserError where the repository does not hold it."""
    held = held_versions(repository)
    if version not in held:
        raise UserError(
            f"{repository}: has no version {version}; it has {', '.join(map(str, held)) or 'none'}"
        )
    path = repository / ENSEMBLE / str(version) / MANIFEST_FILE
    manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return manifest


def describe_label_change(repository: Path, before: int, version: int) -> str | None:
    """How another version's labels differ, in words; None where they are the same in the same order."""
    old, new = (read_manifest(repository, each)["labels"] for each in (before, version))
    return describe_labels(old, new)


def describe_labels(old: Sequence[str], new: Sequence[str]) -> str | None:
    """How `new` differs from `old`, in words; None where it does not."""
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
    """Every file of the version is the one that was exported. TorchScript is code: no other file is run."""
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
    """Hex digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_activation(repository: Path, version: int) -> None:
    """Remember the order in which versions served, for `rollback`."""
    with (repository / ENSEMBLE / HISTORY_FILE).open("a", encoding="utf-8") as file:
        file.write(f"{version}\n")


def previous_version(repository: Path) -> int:
    """The version that served before this one, if it is still there."""
    serving, held = serving_version(repository), held_versions(repository)
    path = repository / ENSEMBLE / HISTORY_FILE
    served = [int(line) for line in path.read_text("utf-8").split()] if path.is_file() else []
    before = [version for version in served if version != serving and version in held]
    if not before:
        raise UserError(f"{repository}: no version served before {serving}; it holds {held}")
    return before[-1]


def prune(repository: Path, keep: int, in_use: Collection[int] = ()) -> list[int]:
    """Delete all but the newest `keep` versions, those that the configs name, and those in use elsewhere.

    in_use   what a running server has loaded, whatever the configs say
    returns  the deleted ones
    """
    held = held_versions(repository)
    named = {*loaded_versions(repository), serving_version(repository)}
    doomed = sorted(set(held) - set(held[-keep:]) - named - set(in_use))
    for version in doomed:
        # The manifest goes first: what is half deleted is no version any more.
        for model in (ENSEMBLE, *STEPS):
            shutil.rmtree(repository / model / str(version))
    return doomed


def replace_text(path: Path, text: str) -> None:
    """Change a file in one rename."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(path)
