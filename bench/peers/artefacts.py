"""A model in process, for what is compared with the server: exported graphs, or a run's eager model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diptych.data.labels import LABELS_FILE, read_labels
from diptych.export.gate import openvino_parts
from diptych.export.precision import Precision
from diptych.export.torchscript import CPU, run_parts
from diptych.models.classifier import Inputs
from diptych.runs.run import WEIGHTS_FILE, load_run
from diptych_serving.openvino_runtime import VERSION_FILE
from diptych_serving.preprocessing import Preprocessor
from diptych_serving.release.in_process import Parts, load_parts
from diptych_serving.repository.layout import ENSEMBLE, FUSION_HEAD, IMAGE_ENCODER, TEXT_ENCODER

VERSION = "1"


def open_model(directory: Path, device: torch.device = CPU) -> Artefacts | Eager:
    """A repository's graphs, or a run's eager model."""
    return Eager(directory, device) if (directory / WEIGHTS_FILE).is_file() else Artefacts(directory, device)


class Eager:
    """Items to probabilities as a service does that loads the run: PyTorch, fp32, nothing exported."""

    def __init__(self, directory: Path, device: torch.device = CPU) -> None:
        run = load_run(directory)
        self.preprocessor, self.labels, self._device = run.preprocessor, run.labels, device
        self._model = run.model.to(device).eval()

    @torch.inference_mode()
    def classify(self, items: Sequence[tuple[bytes, bytes]]) -> Tensor:
        """(B, C) float32; raises the first row's InvalidInput, where one is refused."""
        inputs = _inputs(self.preprocessor, items).to(self._device)
        probabilities: Tensor = self._model.fusion_head(*self._model.features(inputs))
        return probabilities.cpu()


class Artefacts:
    """Items to probabilities, as the server's steps would compute them, in the runtime of the export."""

    def __init__(self, repository: Path, device: torch.device = CPU) -> None:
        # As in the server: nothing is compiled anew for each batch size.
        torch._C._jit_set_profiling_mode(False)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        self.preprocessor = Preprocessor.load(repository / "preprocess" / VERSION)
        parts = (IMAGE_ENCODER, TEXT_ENCODER, FUSION_HEAD)
        directories = {name: repository / name / VERSION for name in parts}
        in_openvino = _openvino(directories) if device.type == "cpu" else None
        self.parts: Parts = in_openvino or load_parts(directories, device)
        self._device = device
        self.labels = read_labels(repository / ENSEMBLE / VERSION / LABELS_FILE)

    def classify(self, items: Sequence[tuple[bytes, bytes]]) -> Tensor:
        """(B, C) float32; raises the first row's InvalidInput, where one is refused."""
        return self.run(_inputs(self.preprocessor, items))

    def run(self, inputs: Inputs) -> Tensor:
        """(B, C) float32"""
        return run_parts(self.parts, inputs, self._device)


def _openvino(directories: Mapping[str, Path]) -> Parts | None:
    """None where the export is for TorchScript."""
    files = {name: directory / VERSION_FILE for name, directory in directories.items()}
    if not all(file.is_file() for file in files.values()):
        return None
    numbers = {name: json.loads(file.read_text("utf-8"))["precision"] for name, file in files.items()}
    precision = Precision(image=numbers[IMAGE_ENCODER], text=numbers[TEXT_ENCODER])
    return openvino_parts(directories, precision, torch.get_num_threads())


def _inputs(preprocessor: Preprocessor, items: Sequence[tuple[bytes, bytes]]) -> Inputs:
    batch = preprocessor.batch(items)
    for error in batch.errors.values():
        raise error
    return Inputs(
        pixel_values=torch.from_numpy(batch.pixel_values),
        image_present=torch.from_numpy(batch.image_present[:, 0]),
        input_ids=torch.from_numpy(batch.input_ids),
        attention_mask=torch.from_numpy(batch.attention_mask),
    )
