"""What a run needs to go on after it was killed, in one file that is whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from diptych.errors import UserError

CHECKPOINT_FILE = "checkpoint.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write beside, reach the disk, rename: a kill at any moment leaves the old one or the new one."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / f"{CHECKPOINT_FILE}.tmp"
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(directory / CHECKPOINT_FILE)


def load_checkpoint(directory: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state to go on from; None where there is none. Tensors and plain values only, no pickled code.

    fingerprint  of config and data: a checkpoint of another run is refused, not mixed in
    """
    path = directory / CHECKPOINT_FILE
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise UserError(
            f"{path}: belongs to a run with another config or other data. "
            f"Go on with those, name another --out, or delete it to start anew."
        )
    return state


def remove_checkpoint(directory: Path) -> None:
    """A finished run needs none."""
    (directory / CHECKPOINT_FILE).unlink(missing_ok=True)
