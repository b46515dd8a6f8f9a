"""Saves and loads the state that a run needs to resume after it was killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from diptych_serving.errors import UserError

CHECKPOINT_FILE = "checkpoint.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write, sync to disk, rename: a kill leaves the old checkpoint or the new one."""
    unfinished = directory / f"{CHECKPOINT_FILE}.tmp"
    try:
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(directory / CHECKPOINT_FILE)
    except (OSError, RuntimeError) as error:  # torch's own, on a full disk
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise UserError(
            f"{directory}: cannot save a checkpoint: {reason}. Make room and run the same command again: "
            "it resumes from the previous checkpoint, if there is one"
        ) from error


def load_checkpoint(directory: Path, fingerprint: dict[str, str]) -> dict[str, Any] | None:
    """The state to resume from; None if there is none. Only tensors and plain values, no pickled code.

    fingerprint  of everything that the run depends on; a checkpoint of another run is refused
    """
    path = directory / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(state["fingerprint"])
    except Exception as error:  # torch raises almost anything on a damaged file
        raise UserError(
            f"{path}: damaged, so this run cannot be resumed ({str(error).splitlines()[0]}). "
            f"Delete {directory} to start again"
        ) from error
    changed = [name for name, digest in fingerprint.items() if found.get(name) != digest]
    if changed:
        raise UserError(
            f"{path}: belongs to a run with other {' and '.join(changed)}. "
            f"Resume it as it was, name another --out, or delete {directory} to start again"
        )
    return state


def remove_checkpoint(directory: Path) -> None:
    """A finished run needs none."""
    (directory / CHECKPOINT_FILE).unlink(missing_ok=True)
