"""A tiny catalogue, a tiny real model trained on it, and the repository exported from it."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from diptych.config.loader import load_config
from diptych.evaluation.evaluate import evaluate
from diptych.export.export import export
from diptych.runs.run import Run
from diptych.train.train import train

COLOURS = {"cold": (40, 80, 220), "green": (30, 170, 60), "warm": (220, 60, 30)}
WORDS = {"cold": "ice snow winter lake", "green": "leaf grass garden tree", "warm": "fire sun summer lamp"}


def write_picture(path: Path, category: str, seed: int) -> None:
    """A shape in the category's colour on white."""
    image = Image.new("RGB", (48 + seed % 17, 40), "white")
    corner = 2 + seed % 9
    ImageDraw.Draw(image).ellipse((corner, corner, 24 + corner, 22 + corner), fill=COLOURS[category])
    image.save(path)


def write_catalogue(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    """A CSV in the article's format."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_path", "description", "category"), *rows])
    return path


def make_catalogue(directory: Path, num_items: int, first_seed: int = 0) -> Path:
    """Items of three categories; every seventh lacks its picture, every eighth its words."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(first_seed, first_seed + num_items):
        category = sorted(COLOURS)[seed % 3]
        words = WORDS[category].split()
        picture = f"{seed}.png"
        write_picture(directory / picture, category, seed)
        text = f"a {words[seed % 4]} and a {words[(seed + 1) % 4]} number {seed}"
        rows.append((picture if seed % 7 else "", text if seed % 8 or not seed % 7 else "", category))
    return write_catalogue(directory / "items.csv", rows)


def make_text_backbone(directory: Path) -> Path:
    """A BERT of two small layers in the hub's own format, with a tokenizer that knows the words above."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    known = [*special, "a", "and", "number", *" ".join(WORDS.values()).split()]
    vocabulary = {word: index for index, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(directory)
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


@pytest.fixture(scope="session", autouse=True)
def embedding_cache(tmp_path_factory: pytest.TempPathFactory):
    """Tests never read what another run has cached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose whole run takes seconds: timm's smallest test network and the BERT above."""
    root = tmp_path_factory.mktemp("tiny")
    train_csv = make_catalogue(root / "train", 84)
    val_csv = make_catalogue(root / "val", 36, first_seed=1000)
    test_csv = make_catalogue(root / "test", 36, first_seed=2000)
    path = root / "tiny.toml"
    path.write_text(
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
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained and evaluated run."""
    run = train(load_config(tiny_config), tmp_path_factory.mktemp("runs") / "tiny")
    evaluate(run)
    return run


def relabel(run: Run, labels: Sequence[str]) -> Run:
    """The same model under other labels; rows of a category that it no longer knows are left out."""
    data = dataclasses.replace(run.config.data, skip_bad_rows=True)
    return dataclasses.replace(run, labels=list(labels), config=dataclasses.replace(run.config, data=data))


@pytest.fixture(scope="session")
def exported_repository(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `diptych export` makes of it, version 1."""
    repository = tmp_path_factory.mktemp("served") / "model_repository"
    export(tiny_run, repository)
    return repository
