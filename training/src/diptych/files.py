"""Writes files so that an interruption leaves the old or the new file, never a part."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_json(path: Path, tree: Any, indent: int | None = 2) -> None:
    """Write JSON by a rename.

    Raises ValueError for NaN and infinity, which JSON does not have: the code that computes them must
    handle them.
    """
    text = json.dumps(tree, indent=indent, allow_nan=False) + "\n"
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, "utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file by a rename, with the umask's mode.

    `save_file` alone makes it readable only by its owner.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        # Copies: a tensor that two layers share, as BART's embeddings, is refused by `save_file`.
        seen: set[int] = set()
        unshared = {}
        for name, tensor in tensors.items():
            address = tensor.untyped_storage().data_ptr()
            unshared[name] = tensor.clone() if address in seen else tensor.contiguous()
            seen.add(address)
        save_file(unshared, unfinished, dict(metadata or {}))
        unfinished.chmod(mode)
        unfinished.rename(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
