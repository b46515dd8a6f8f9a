"""An exported repository, opened in process: its preprocessing, its TorchScript, its labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diptych.data.labels import LABELS_FILE, read_labels
from diptych.export.torchscript import CPU, run_parts
from diptych.models.classifier import Inputs
from diptych_serving.preprocessing import Batch, Preprocessor
from diptych_serving.release.in_process import load_parts
from diptych_serving.repository.layout import ENSEMBLE, FUSION_HEAD, IMAGE_ENCODER, TEXT_ENCODER

VERSION = "1"


class Artefacts:
    """Items to probabilities, as the server's steps would compute them."""

    def __init__(self, repository: Path, device: torch.device = CPU) -> None:
        # As in the server: nothing is compiled anew for each batch size.
        torch._C._jit_set_profiling_mode(False)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        self.preprocessor = Preprocessor.load(repository / "preprocess" / VERSION)
        parts = (IMAGE_ENCODER, TEXT_ENCODER, FUSION_HEAD)
        self._parts = load_parts({name: repository / name / VERSION for name in parts}, device)
        self._device = device
        self.labels = read_labels(repository / ENSEMBLE / VERSION / LABELS_FILE)

    def classify(self, items: Sequence[tuple[bytes, bytes]]) -> Tensor:
        """(B, C) float32; raises the first row's InvalidInput, where one is refused."""
        batch = self.preprocessor.batch(items)
        for error in batch.errors.values():
            raise error
        return self.run(batch)

    def run(self, batch: Batch) -> Tensor:
        """(B, C) float32"""
        inputs = Inputs(
            pixel_values=torch.from_numpy(batch.pixel_values),
            image_present=torch.from_numpy(batch.image_present[:, 0]),
            input_ids=torch.from_numpy(batch.input_ids),
            attention_mask=torch.from_numpy(batch.attention_mask),
        )
        return run_parts(self._parts, inputs, self._device)
