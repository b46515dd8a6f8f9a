"""JSON files that other programs read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, tree: Any, indent: int | None = 2) -> None:
    """Write beside and rename: the file is the old one or the new one, never half of it.

    NaN and infinity are not JSON: they raise ValueError. The code that computes them has to report them.
    """
    text = json.dumps(tree, indent=indent, allow_nan=False) + "\n"
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, "utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
