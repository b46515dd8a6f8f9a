"""The model's three parts as TorchScript. Kept small: TorchScript is deprecated upstream."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.models.classifier import Classifier, Inputs

Parts = Mapping[str, nn.Module]

IMAGE_ENCODER, TEXT_ENCODER, FUSION_HEAD = "image_encoder", "text_encoder", "fusion_head"


def eager_parts(model: Classifier) -> Parts:
    """The modules as they were trained, by their names in the repository."""
    return {
        IMAGE_ENCODER: model.image_encoder,
        TEXT_ENCODER: model.text_encoder,
        FUSION_HEAD: model.fusion_head,
    }


def to_torchscript(model: Classifier, example: Inputs) -> dict[str, torch.jit.ScriptModule]:
    """Trace the backbones, script what is around them (its branches depend on the data), freeze the whole.

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
        pixels = ((example.pixel_values - image.mean) / image.std).contiguous(
            memory_format=torch.channels_last
        )
        image.backbone = torch.jit.trace(image.backbone, (pixels,), check_trace=False)
        tokens = (example.input_ids, example.attention_mask)
        text.backbone = torch.jit.trace(text.backbone, tokens, check_trace=False)
        return {name: torch.jit.freeze(torch.jit.script(part)) for name, part in eager_parts(model).items()}


@torch.inference_mode()
@torch.jit.optimized_execution(False)  # as in the server: nothing is compiled anew for each shape
def run_parts(parts: Parts, batch: Inputs) -> Tensor:
    """The chain as Triton runs it: a batch to (B, C) float32 probabilities."""
    image_features = parts[IMAGE_ENCODER](batch.pixel_values, batch.image_present.unsqueeze(1))
    text_features = parts[TEXT_ENCODER](batch.input_ids, batch.attention_mask, image_features)
    probabilities: Tensor = parts[FUSION_HEAD](image_features, text_features)
    return probabilities
