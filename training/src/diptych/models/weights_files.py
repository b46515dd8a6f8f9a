"""Reads files of pretrained weights: state dicts, checkpoints of trainers, directories of a hub.

It knows file formats and no backbones. It unpickles tensors and plain values only.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diptych.pretrained import damage_of
from diptych_serving.errors import UserError

ACCEPTED = "accepted: a .safetensors file, a state dict or checkpoint of torch.save, or a directory with one"
# Of a snapshot of a hub, the first that is there.
IN_A_DIRECTORY = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# Where trainers put the weights into their checkpoints; PyTorch Lightning and timm the first.
NESTED = ("state_dict", "model", "model_state_dict")


def find_weights(source: Path) -> Path:
    """The file itself, or the one file with weights of a directory. Raises UserError."""
    if not source.is_dir():
        return source
    for name in IN_A_DIRECTORY:
        if (source / name).exists():
            return source / name
    found = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{source}: found {names} as files with weights; name the one to load")
    return found[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name. Raises UserError that says what else the file is."""
    require_weights(path)
    try:
        if _looks_like_safetensors(path):
            return load_file(path)
        # DeiT, DINO and timm keep the arguments of their training beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged, or not downloaded to its end ({_first_line(error)})") from error
    except Exception as error:  # UnpicklingError, and what damaged pickles raise
        raise UserError(
            f"{path}: holds pickled objects besides tensors, which could run any code when read. "
            "Where you trust it, load it elsewhere and keep torch.save(model.state_dict(), FILE)"
        ) from error
    weights = _find_tensors(tree)
    if not weights:
        raise UserError(f"{path}: holds no named tensors; {ACCEPTED}")
    return weights


def require_weights(path: Path) -> None:
    """Raise UserError where a file cannot hold weights, with one line that says what it is."""
    if problem := damage_of(path) or _other_format(path):
        raise UserError(f"{path} {problem}; {ACCEPTED}")


def without_prefix(weights: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """The weights under a backbone's own names, where they lie under 'module.', 'model.' or any other prefix.

    Other entries, such as a head beside the backbone, are left out where a prefix was found.

    known  the names of the backbone's tensors; where none is found all stay as they are
    """
    prefixes = {name[: -len(each)] for each in list(known)[:3] for name in weights if name.endswith(each)}
    best = max(sorted(prefixes | {""}), key=lambda prefix: sum(prefix + name in weights for name in known))
    return {name[len(best) :]: tensor for name, tensor in weights.items() if name.startswith(best)}


def _find_tensors(tree: Any) -> dict[str, Tensor]:
    if not isinstance(tree, Mapping):
        return {}
    for key in NESTED:
        if isinstance(tree.get(key), Mapping):
            return _find_tensors(tree[key])
    return {str(name): tensor for name, tensor in tree.items() if isinstance(tensor, Tensor)}


def _looks_like_safetensors(path: Path) -> bool:
    """By content: names lie. The file begins with the length of a JSON object, in 8 bytes."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _other_format(path: Path) -> str | None:
    """What a file is by its first bytes, where it cannot hold weights."""
    with path.open("rb") as file:
        head = file.read(256)
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file, of Keras or TensorFlow"
    if head.startswith(b"\x93NUMPY") or (head.startswith(b"PK") and b".npy" in head):
        return "is a NumPy file"
    # torch.save: a zip archive, before PyTorch 1.6 a pickle; safetensors: a length and JSON.
    if not head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        return "is no file of weights that is known here"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
