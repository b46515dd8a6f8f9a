"""Asks one version of a repository in this process, without a server. Needs torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych_serving.errors import UserError
from diptych_serving.preprocessing import InvalidInput, Preprocessor
from diptych_serving.repository.golden import Ask
from diptych_serving.repository.layout import (
    FUSION_HEAD,
    IMAGE_ENCODER,
    PREPROCESS,
    TEXT_ENCODER,
    TORCHSCRIPT,
    TORCHSCRIPT_FILE,
)

Parts = Mapping[str, Callable[..., Tensor]]
CPU = torch.device("cpu")


def load_parts(directories: Mapping[str, Path], device: torch.device = CPU) -> Parts:
    """The TorchScript modules in version directories, by the names of their models."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        return {
            model: torch.jit.load(directories[model] / TORCHSCRIPT_FILE, map_location=device)
            for model in TORCHSCRIPT
        }


@torch.inference_mode()
@torch.jit.optimized_execution(False)  # as in the server: no new compilation for each shape
def run_chain(
    parts: Parts, pixel_values: Tensor, image_present: Tensor, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """The three models one after the other, as Triton's ensemble runs them.

    pixel_values (B, 3, H, W) uint8; image_present (B,) bool; input_ids, attention_mask (B, L) int64
    returns      (B, C) float32 probabilities
    """
    image_features = parts[IMAGE_ENCODER](pixel_values, image_present.unsqueeze(1))
    text_features = parts[TEXT_ENCODER](input_ids, attention_mask, image_features)
    probabilities: Tensor = parts[FUSION_HEAD](image_features, text_features)
    return probabilities


def ask_in_process(parts: Parts, preprocessor: Preprocessor) -> Ask:
    """A function from image file and UTF-8 text to probabilities (C,) float32."""

    def ask(image: bytes, text: bytes) -> NDArray[np.float32]:
        (row,) = preprocessor.rows([(image, text)])
        if isinstance(row, InvalidInput):
            raise UserError(str(row))
        batch = (
            torch.from_numpy(np.asarray(array)[None])
            for array in (row.pixel_values, row.image_present, row.input_ids, row.attention_mask)
        )
        probabilities: NDArray[np.float32] = run_chain(parts, *batch)[0].numpy()
        return probabilities

    return ask


def ask_files(repository: Path, version: int) -> Ask:
    """The same, for the files of one version."""
    directories = {model: repository / model / str(version) for model in TORCHSCRIPT}
    preprocessor = Preprocessor.load(repository / PREPROCESS / str(version))
    return ask_in_process(load_parts(directories), preprocessor)
