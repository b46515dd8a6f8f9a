"""Checks labels, and reads and writes labels.txt: one a line, in the order of the model's outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diptych.data.categories import control_character
from diptych_serving.errors import UserError

LABELS_FILE = "labels.txt"


def check_labels(labels: Sequence[str], where: str) -> None:
    """Raise UserError for invalid labels.

    where  their source, for the message
    """
    for label, count in Counter(labels).items():
        if count > 1:
            raise UserError(f"{where}: found {label!r} {count} times; each label is named once")
        if not label or label != label.strip():
            raise UserError(f"{where}: found {label!r}; a label is not empty and has no space at its ends")
        if control_character(label):
            raise UserError(f"{where}: found {label!r}; a label has no line break and no control character")
    if len(labels) < 2:
        found = f"only {labels[0]!r}" if labels else "none"
        raise UserError(f"{where}: found {found}; training needs at least two labels")


def write_labels(labels: Sequence[str], path: Path) -> None:
    """One label a line, each line ended by a line feed."""
    path.write_bytes("".join(f"{label}\n" for label in labels).encode())


def read_labels(path: Path) -> list[str]:
    """Read what `write_labels` wrote. Only a line feed ends a line; str.splitlines splits at others too."""
    return path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
