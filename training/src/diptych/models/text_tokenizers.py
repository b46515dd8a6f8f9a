"""The tokenizers of text backbones, as one file of the `tokenizers` library."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from diptych.config.sections import TextConfig
from diptych.pretrained import LOADING_ERRORS, cannot_load, file_of, hub_is_reachable, package
from diptych_serving.errors import UserError


def tokenizer_json(config: TextConfig) -> str:
    """The backbone's own tokenizer, its padding token included, as the `tokenizers` library reads it."""
    source = text_source(config.backbone)
    try:
        tokenizer = _tokenizer(source)
    except LOADING_ERRORS as error:
        raise UserError(cannot_load("text", config.backbone, error)) from error
    # GPT-2 and others have no padding token. No attention sees what is padded: any token will do.
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if not tokenizer.is_fast or pad_id is None:
        raise UserError(f"text.backbone '{config.backbone}': needs a fast tokenizer with a padding token")
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree["padding"] = {
        "strategy": {"Fixed": config.max_tokens},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": pad_id,
        "pad_type_id": 0,
        "pad_token": tokenizer.convert_ids_to_tokens(pad_id),
    }
    tree["truncation"] = {
        "direction": tokenizer.truncation_side.capitalize(),
        "max_length": config.max_tokens,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    return json.dumps(tree, ensure_ascii=False)


def text_source(backbone: str) -> str:
    """The directory or the hub name that a config's `backbone` means."""
    name = backbone.removeprefix("package:")
    return str(package(name).MODEL_DIR) if name != backbone else backbone


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a directory or a hub name."""
    options = {"local_files_only": not (Path(source).is_dir() or hub_is_reachable())}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        if tokenizer.is_fast:
            return tokenizer
    except ImportError:  # a tokenizer that needs sentencepiece, where there is none
        if file_of(source, "tokenizer.json") is None:
            raise
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **options)
    path = file_of(source, "tokenizer_config.json")
    if path and json.loads(path.read_text("utf-8")).get("tokenizer_class") == "SiglipTokenizer":
        _canonicalize(tokenizer.backend_tokenizer)
    return tokenizer


def _canonicalize(tokenizer: Tokenizer) -> None:
    """What SiglipTokenizer does in Python before it tokenizes; a file that already does it stays the same."""
    punctuation = Regex(f"[{re.escape(string.punctuation)}]")
    steps = [normalizers.Lowercase(), normalizers.Replace(punctuation, "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    steps += [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence(steps)
