"""The categories by name, in the order of the model's outputs, and labels.txt, which holds one a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diptych.data.categories import control_character
from diptych_serving.errors import UserError

LABELS_FILE = "labels.txt"


def check_labels(labels: Sequence[str], where: str) -> None:
    """Raise UserError for labels that no model can be trained with.

    where  where they come from, for the message
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
        raise UserError(f"{where}: found {found}; there is nothing to learn with fewer than two labels")


def write_labels(labels: Sequence[str], path: Path) -> None:
    """One a line, each line ended by a line feed."""
    path.write_bytes("".join(f"{label}\n" for label in labels).encode())


def read_labels(path: Path) -> list[str]:
    """What `write_labels` wrote. Only a line feed ends a line: str.splitlines knows nine other characters."""
    return path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
