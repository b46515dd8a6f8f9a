"""Small random pairs in the hub's format, with every file that the real ones have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BertTokenizer,
    ChineseCLIPImageProcessor,
    CLIPImageProcessor,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

SIZE_PX = 32
WORDS = (
    "a and number photo of ice snow winter lake leaf grass garden tree fire sun summer lamp cold green warm"
)
CHINESE = "冰雪冬湖叶草园树火阳夏灯和一个冷绿暖红色的风筝照片"
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
MEAN_STD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def save_pair(directory: Path, family: str, size_px: int = SIZE_PX) -> Path:
    """'clip', 'metaclip_2', 'siglip' or 'chinese_clip': config, weights, preprocessing, tokenizer."""
    torch.manual_seed(0)
    tokenizer = {"siglip": siglip_tokenizer, "chinese_clip": chinese_tokenizer}.get(family, clip_tokenizer)()
    tokenizer.save_pretrained(directory)
    text = TEXT | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": {"siglip": 64, "chinese_clip": 128}.get(family, 77),
        "pad_token_id": 1 if family == "siglip" else tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    projection: dict[str, Any] = {} if family == "siglip" else {"projection_dim": 24}
    config = CONFIG_MAPPING[family](
        text_config=text,
        vision_config=TEXT | {"image_size": size_px, "patch_size": size_px // 4},
        **projection,
    )
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:  # as it is drawn, all embeddings are nearly the same
                weight.mul_(4)
    model.save_pretrained(directory)
    size = {"height": size_px, "width": size_px}
    if family == "siglip":
        processor = SiglipImageProcessor(size=size, resample=2, **MEAN_STD)
    elif family == "chinese_clip":
        processor = ChineseCLIPImageProcessor(size=size, do_center_crop=False)
    else:
        processor = CLIPImageProcessor(size={"shortest_edge": size_px}, crop_size=size)
    processor.save_pretrained(directory)
    return directory


def clip_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes without merges; the end of text has the highest id, as in OpenAI's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*alphabet, *(f"{character}</w>" for character in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(known)}, merges=[])


def siglip_tokenizer() -> PreTrainedTokenizerBase:
    """As SigLIP 2's: lower case, padding 0 where the config names another."""
    known = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **special)


def chinese_tokenizer() -> PreTrainedTokenizerBase:
    """BERT's, a token for each character."""
    known = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *dict.fromkeys(CHINESE),
        *WORDS.split(),
        *"0123456789",
    ]
    return BertTokenizer(vocab={token: index for index, token in enumerate(known)})
