"""Digests of what a run depends on, to find its checkpoint and its cached embeddings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from diptych.config.loader import Config
from diptych.config.sections import DataConfig
from diptych.data.items import Item, UnusableItem
from diptych.location import Location
from diptych.runs.run import Run
from diptych_serving.progress import progress_bar

FINGERPRINT_FILE = "fingerprint.json"
STARTING_WEIGHTS = "weights to start from"
ITEMS_AT_ONCE = 256


def fingerprint(run: Run, train_items: Sequence[Item], val_items: Sequence[Item]) -> dict[str, str]:
    """Digests of everything that decides the final weights, by a name for messages, before training.

    Images are compared by content. With data.check_images = false no image may be read in advance, so image
    files are compared by size and modification time.
    """
    config = run.config
    spec = json.dumps(dataclasses.asdict(run.preprocessor.spec))
    return {
        **fingerprint_settings(config),
        "labels": _digest(json.dumps(run.labels)),
        "preprocessing": _digest(spec + run.preprocessor.tokenizer_json),
        STARTING_WEIGHTS: digest_tensors(run.model.state_dict()),
        **fingerprint_items(config.data, {"training items": train_items, "validation items": val_items}),
    }


def fingerprint_settings(config: Config) -> dict[str, str]:
    """Of the config as it was given, without the keys that do not change the result."""
    train = dataclasses.replace(config.train, checkpoint_minutes=1, num_workers=0)
    return {"settings": _digest(repr(dataclasses.replace(config, train=train)))}


def fingerprint_items(data: DataConfig, splits: Mapping[str, Sequence[Item]]) -> dict[str, str]:
    """Of each split, by its name."""
    return {name: digest_items(items, name, reads_images=data.check_images) for name, items in splits.items()}


def digest_items(items: Sequence[Item], title: str, *, reads_images: bool = True) -> str:
    """Of images, texts, categories and their order."""

    def digest_image(item: Item) -> str:
        if not reads_images and isinstance(item.image, Location):
            try:
                return item.image.version()
            except OSError as error:
                raise UnusableItem(f"{item.place}: cannot read its image {item.image}: {error}") from None
        return hashlib.sha256(item.read_image()).hexdigest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar(f"Reading {title}", len(items)) as advance:
        for start in range(0, len(items), ITEMS_AT_ONCE):
            some = items[start : start + ITEMS_AT_ONCE]
            for item, image in zip(some, pool.map(digest_image, some), strict=True):
                digest.update(json.dumps((image, item.text, item.category)).encode())
            advance(len(some))
    return digest.hexdigest()


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names and values."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
