"""A tiny real model: its config, a run trained from it, and what `diptych export` makes of that run.

Import the fixtures into a conftest.py. They load torch.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from diptych.config.loader import load_config
from diptych.evaluation.evaluate import evaluate
from diptych.export.export import export
from diptych.runs.run import Run, load_run
from diptych.train.train import train
from tests.helpers.catalogues import WORDS, make_catalogue
from tests.helpers.once import once


def save_tokenizer(directory: Path, **options: str) -> None:
    """One that knows the catalogues' words; its padding is 0 and its end of text 3."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    known = [*special, "a", "and", "number", *" ".join(WORDS.values()).split()]
    vocabulary = {word: index for index, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **options
    )
    fast.save_pretrained(directory)


def make_text_backbone(directory: Path) -> Path:
    """A BERT of two small layers in the hub's own format, with such a tokenizer."""
    save_tokenizer(directory)
    BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    ).save_pretrained(directory)
    return directory


def relabel(run: Run, labels: Sequence[str]) -> Run:
    """The same model under other labels; rows of a category that it no longer knows are left out."""
    data = dataclasses.replace(run.config.data, skip_bad_rows=True)
    return dataclasses.replace(run, labels=list(labels), config=dataclasses.replace(run.config, data=data))


def write_tiny_config(root: Path) -> None:
    """tiny.toml: timm's smallest test network and the BERT above. Training takes seconds."""
    root.mkdir()
    train_csv = make_catalogue(root / "train", 84)
    # Without a mistake here, the temperature would end at its bound, and all answers would be near 0 and 1.
    val_csv = make_catalogue(root / "val", 36, first_seed=1000, wrong_every=5)
    test_csv = make_catalogue(root / "test", 36, first_seed=2000)
    (root / "tiny.toml").write_text(
        f"""
        [data]
        train_csv = {json.dumps(str(train_csv))}
        val_csv = {json.dumps(str(val_csv))}
        test_csv = {json.dumps(str(test_csv))}
        [image]
        backbone = "timm:test_efficientnet"
        weights = "random"
        size_px = 64
        [text]
        backbone = {json.dumps(str(make_text_backbone(root / "text_backbone")))}
        weights = "random"
        max_tokens = 24
        [train]
        epochs = 12
        batch_size = 16
        lr = 0.003
        freeze_backbones = true
        num_workers = 0
        """
    )


def train_tiny_run(config: Path, to: Path) -> None:
    evaluate(train(load_config(config), to))


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config. Its catalogues are for reading: all test processes use the same."""
    return once(tmp_path_factory, "tiny", write_tiny_config) / "tiny.toml"


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained and evaluated run. Its directory is for reading: all test processes use the same."""
    return load_run(once(tmp_path_factory, "tiny_run", lambda to: train_tiny_run(tiny_config, to)))


@pytest.fixture(scope="session")
def exported_repository(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported run, version 1. Each test process has its own copy: servers keep bytecode in it."""
    exported = once(tmp_path_factory, "exported", lambda to: export(tiny_run, to))
    return Path(shutil.copytree(exported, tmp_path_factory.mktemp("served") / "model_repository"))
