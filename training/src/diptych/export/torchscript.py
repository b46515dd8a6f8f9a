"""The model's three parts as TorchScript. Kept small: TorchScript is deprecated upstream."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

from diptych.export.devices import follow_input_device, require_no_device
from diptych.export.precision import FP32, Numbers, Precision
from diptych.models.classifier import Classifier, Inputs
from diptych_serving.release.in_process import Parts, run_chain
from diptych_serving.repository.layout import FUSION_HEAD, IMAGE_ENCODER, TEXT_ENCODER, TORCHSCRIPT_FILE

# Inside the file, which is a zip archive. The version's place depends on the version; the writer adds it, and
# an id, itself.
DEBUG_RECORD, VERSION_RECORDS, ID_RECORD = (
    ".debug_pkl",
    ("version", ".data/version"),
    ".data/serialization_id",
)
CPU = torch.device("cpu")
SIXTEEN_BITS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Between32Bits(nn.Module):
    """A backbone that computes in 16 bits, and is given and gives float32."""

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = backbone.to(dtype)
        self.dtype = dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        """Whatever the backbone takes; integers stay as they are."""
        embeddings: Tensor = self.backbone(
            *(tensor.to(self.dtype) if tensor.is_floating_point() else tensor for tensor in inputs)
        )
        return embeddings.float()


def eager_parts(model: Classifier) -> Parts:
    """The modules as they were trained, by their names in the repository."""
    return {
        IMAGE_ENCODER: model.image_encoder,
        TEXT_ENCODER: model.text_encoder,
        FUSION_HEAD: model.fusion_head,
    }


def to_torchscript(
    model: Classifier, example: Inputs, precision: Precision = FP32
) -> dict[str, torch.jit.ScriptModule]:
    """Trace the backbones, script what is around them (its branches depend on the data), freeze the whole.

    Freezing folds batch norms into their convolutions. `torch.jit.optimize_for_inference` would go further,
    but its layouts fit one machine and cannot be saved.

    example  a few rows with image and text; at least one text must be padded, so that the traced
             attention keeps its mask
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    image, text = model.image_encoder, model.text_encoder
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        # Tracers warn of Python branches on tensors; the parity gate runs the shapes that would take others.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # Tracing reads every property of the encoder, those that transformers has deprecated too.
        warnings.filterwarnings(
            "ignore", message=".*is deprecated and will be removed", category=FutureWarning
        )
        # DeBERTa makes tensors of sizes, which are tensors while they are traced.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
        # PyTorch has moved its quantisation to a package of its own, which does not give TorchScript.
        warnings.filterwarnings("ignore", message=".*torch.ao.quantization", category=DeprecationWarning)
        image.backbone = _in_numbers(image.backbone, precision.image)
        text.backbone = _in_numbers(text.backbone, precision.text)  # type: ignore[assignment]
        pixels = image.normalise(example.pixel_values)
        image.backbone = torch.jit.trace(image.backbone, (pixels,), check_trace=False)
        tokens = (example.input_ids, example.attention_mask)
        text.backbone = torch.jit.trace(text.backbone, tokens, check_trace=False)
        frozen = {
            name: follow_input_device(torch.jit.freeze(torch.jit.script(part)))
            for name, part in eager_parts(model).items()
        }
    for name, part in frozen.items():
        require_no_device(name, part)
    return frozen


def save_parts(parts: Mapping[str, torch.jit.ScriptModule], directories: Mapping[str, Path]) -> None:
    """Each part as model.pt in its version directory; in place of one that is there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated", category=DeprecationWarning)
        for name, part in parts.items():
            # Not torch.jit.save: on a full disk it aborts the process, without a message.
            content = without_debug_records(part.save_to_buffer())
            (directories[name] / TORCHSCRIPT_FILE).write_bytes(content)


def without_debug_records(content: bytes) -> bytes:
    """The same TorchScript file without the records of where in the Python source each operation came from.

    LibTorch puts what they say into the messages of errors, which callers of a native server see: 4 kB, with
    paths of the machine that exported. They are a fifth of a small file, and change nothing that is computed.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    stripped = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(stripped)
    for name in reader.get_all_records():
        record = reader.get_record(name)
        if name in VERSION_RECORDS:
            writer.set_min_version(int(record))
        elif not name.endswith(DEBUG_RECORD) and name != ID_RECORD:
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return stripped.getvalue()


def _in_numbers(backbone: nn.Module, numbers: Numbers) -> nn.Module:
    """The backbone as it computes in these numbers.

    int8 has a scale for each channel of a matrix: with one for the whole matrix it moved 6.1 % of the labels
    instead of 4.2 % (quickstart, 524 validation and test items).
    """
    if numbers == "fp32":
        return backbone
    if numbers == "int8":
        quantised: nn.Module = quantize_dynamic(backbone, {nn.Linear: per_channel_dynamic_qconfig})
        return quantised
    return Between32Bits(backbone, SIXTEEN_BITS[numbers])


@torch.inference_mode()
def run_parts(parts: Parts, batch: Inputs, device: torch.device = CPU) -> Tensor:
    """The chain as Triton runs it: a batch to (B, C) float32 probabilities, back on the CPU."""
    return run_chain(parts, *batch.to(device)).cpu()
