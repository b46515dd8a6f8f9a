"""A small model of every family of text encoders, in the hub's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from diptych.config.sections import TextConfig
from tests.helpers.tiny_model import save_tokenizer

MAX_TOKENS = 20
IDS = {"vocab_size": 100, "pad_token_id": 0, "eos_token_id": 3, "bos_token_id": 2}
BERT = IDS | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
DECODER = BERT | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4}
T5 = IDS | {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
BART = IDS | {
    side + key: value
    for side in ("encoder_", "decoder_")
    for key, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 48))
}
CLIP_TEXT = {
    "text_config": BERT,
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}
DEBERTA = BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
GEMMA = DECODER | {"layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "distilbert": IDS
    | {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 40},
    "electra": BERT | {"embedding_size": 16},
    "albert": BERT | {"embedding_size": 16},
    "ernie": BERT,
    "mpnet": BERT,
    "roformer": BERT,
    "deberta": DEBERTA,
    "deberta-v2": DEBERTA | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "modernbert": BERT | {"local_attention": 6, "global_attn_every_n_layers": 2},
    "nomic_bert": BERT,
    "gte": BERT,
    "jina_embeddings_v3": BERT,
    "eurobert": BERT | {"num_key_value_heads": 2},
    "xlnet": IDS | {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
    "qwen2": DECODER,
    "qwen3": DECODER,
    "mistral": DECODER,
    "llama": DECODER,
    "phi3": DECODER,
    "gemma2": DECODER,
    "gpt2": IDS | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "gemma3_text": GEMMA | {"use_bidirectional_attention": True},
    "t5": T5,
    "mt5": T5,
    "bart": BART | {"d_model": 32, "max_position_embeddings": 40},
    "mbart": BART | {"d_model": 32, "max_position_embeddings": 40},
    "clip": CLIP_TEXT | {"projection_dim": 24},
    "siglip": CLIP_TEXT,
    "chinese_clip": CLIP_TEXT | {"projection_dim": 24},
}


def save_architecture(directory: Path, family: str, **changes: Any) -> TextConfig:
    """A small model of a family in the hub's format, without weights; and the config that names it."""
    save_tokenizer(directory)
    CONFIG_MAPPING[family](**FAMILIES.get(family, BERT) | changes).save_pretrained(directory)
    return TextConfig(backbone=str(directory), weights="random", max_tokens=MAX_TOKENS)
