"""Image backbones of the Hugging Face transformers library: ViT, DINOv2, ResNet and the like."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import IMAGE_PROCESSOR_NAME

from diptych_serving.errors import UserError


class TransformersImageBackbone(nn.Module):
    """A model of transformers whose output is one vector an image.

    normalisation  mean and standard deviation of each channel, for pixels from 0 to 1
    """

    def __init__(self, model: PreTrainedModel, normalisation: tuple[list[float], list[float]], size_px: int):
        super().__init__()
        self.model = model
        self.normalisation = normalisation
        # As their authors classify with: ViT and DeiT have a dense layer there that only pretraining used.
        if isinstance(getattr(getattr(model, "pooler", None), "dense", None), nn.Linear):
            model.pooler = None
        takes_size = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        is_other_size = getattr(model.config, "image_size", size_px) not in (size_px, [size_px, size_px])
        self.options = {"interpolate_pos_encoding": True} if takes_size and is_other_size else {}

    def forward(self, pixels: Tensor) -> Tensor:
        """(P, 3, H, W) float32, normalised -> (P, D) float32"""
        output = self.model(pixel_values=pixels, **self.options)
        pooled: Tensor | None = output.get("pooler_output")
        if pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        has_class_token = getattr(getattr(self.model, "embeddings", None), "cls_token", None) is not None
        return hidden[:, 0] if has_class_token else hidden.mean(1)

    def save_architecture(self, directory: Path) -> None:
        """What `read_architecture` needs to build it again without its weights."""
        self.model.config.save_pretrained(directory)
        mean, std = self.normalisation
        tree = {"do_normalize": True, "image_mean": mean, "image_std": std}
        (directory / IMAGE_PROCESSOR_NAME).write_text(json.dumps(tree, indent=2) + "\n", "utf-8")


def read_architecture(source: str) -> tuple[PretrainedConfig, tuple[list[float], list[float]]]:
    """Of a directory or a hub name: its config, mean and standard deviation. Raises UserError, OSError."""
    config = AutoConfig.from_pretrained(source)
    if hasattr(config, "text_config"):
        raise UserError(
            f"image.backbone 'hf:{source}': is a pair of encoders ({config.model_type}); "
            "name it as pair.backbone instead"
        )
    if config.model_type == "vit_mae":
        raise UserError(
            f"image.backbone 'hf:{source}': ViT-MAE leaves out random patches, so its answers are random; "
            "change model_type in its config.json to 'vit'"
        )
    processor, _ = ImageProcessingMixin.get_image_processor_dict(source)
    return config, _normalisation(processor)


def build_transformers_backbone(
    config: PretrainedConfig, normalisation: tuple[list[float], list[float]], size_px: int
) -> TransformersImageBackbone:
    """With random weights, on the default device."""
    model = AutoModel.from_config(config, dtype=torch.float32)
    return TransformersImageBackbone(model, normalisation, size_px)


def load_transformers_backbone(
    source: str, normalisation: tuple[list[float], list[float]], size_px: int
) -> TransformersImageBackbone:
    """With its pretrained weights."""
    model = AutoModel.from_pretrained(source, dtype=torch.float32)
    return TransformersImageBackbone(model, normalisation, size_px)


def _normalisation(processor: dict[str, Any]) -> tuple[list[float], list[float]]:
    if not processor.get("do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    if not {"image_mean", "image_std"} <= set(processor):
        raise OSError(
            f"its {IMAGE_PROCESSOR_NAME} says neither image_mean and image_std nor do_normalize = false"
        )
    return list(processor["image_mean"]), list(processor["image_std"])
