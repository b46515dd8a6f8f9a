"""Embeddings of items, computed once for each combination of backbone and preprocessing.

A file of the cache is a part: `key`, (N, 16) uint8, says which items, and the rest is an `Embeddings`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from diptych.data.dataset import ItemDataset, load_batches
from diptych.data.items import Item
from diptych.files import save_tensors
from diptych.models.classifier import Classifier, Embeddings
from diptych_serving.cache import cache_directory, forget_damaged, keep, use
from diptych_serving.preprocessing import Preprocessor
from diptych_serving.progress import Advance, progress_bar

BATCH_SIZE = 32
# The most that an interruption loses.
ITEMS_OF_A_PART = 256


def embed_items_once(
    model: Classifier, items: Sequence[Item], preprocessor: Preprocessor, *, title: str, num_workers: int
) -> Embeddings:
    """`embed_items`, but what these weights have embedded before comes from the cache.

    An item is recognised by its image and text, so splits and folds of the same items share their embeddings.
    Outputs of a backbone depend on an item's batch by about 1e-6, so they differ by that from `embed_items`.
    """
    prefix = cache_directory("embeddings") / _fingerprint(model, preprocessor)
    keys = [_key(item) for item in items]
    missing = dict(zip(keys, items, strict=True))
    parts: list[Embeddings] = []
    rows: dict[bytes, int] = {}  # key -> row in the joined parts

    def add(part_keys: Sequence[bytes], part: Embeddings) -> None:
        for key in part_keys:
            rows[key] = len(rows)
            del missing[key]
        parts.append(part)

    for path in sorted(prefix.parent.glob(f"{prefix.name}.*.safetensors")):
        if cached := _read(path, missing.keys()):
            add(*cached)
    with progress_bar(f"Embedding {title}", len(items)) as advance:
        advance(len(items) - len(missing))
        new_keys = iter(list(missing))
        for part in _embed_in_parts(model, list(missing.values()), preprocessor, num_workers, advance):
            part_keys = list(islice(new_keys, len(part.image)))
            _keep(part_keys, part, prefix)
            add(part_keys, part)
    return _join(parts).rows(torch.tensor([rows[key] for key in keys]))


def embed_items(
    model: Classifier, items: Sequence[Item], preprocessor: Preprocessor, *, title: str, num_workers: int
) -> Embeddings:
    """The backbones' outputs for all items, in order."""
    parts = []
    with progress_bar(f"Embedding {title}", len(items)) as advance:
        for batch in _embed(model, items, preprocessor, num_workers):
            parts.append(batch)
            advance(len(batch.image))
    return _join(parts)


@torch.inference_mode()
def _embed(
    model: Classifier, items: Sequence[Item], preprocessor: Preprocessor, num_workers: int
) -> Iterator[Embeddings]:
    """Batch by batch, on the CPU."""
    model.eval()
    dataset = ItemDataset(items, sorted({item.category for item in items}), preprocessor)
    device, cpu = model.fusion_head.temperature.device, torch.device("cpu")
    for inputs, _ in load_batches(dataset, num_workers, batch_size=BATCH_SIZE):
        yield model.embed(inputs.to(device)).to(cpu)


def _embed_in_parts(
    model: Classifier,
    items: Sequence[Item],
    preprocessor: Preprocessor,
    num_workers: int,
    advance: Advance,
) -> Iterator[Embeddings]:
    batches = []
    for batch in _embed(model, items, preprocessor, num_workers):
        batches.append(batch)
        advance(len(batch.image))
        if len(batches) * BATCH_SIZE >= ITEMS_OF_A_PART:
            yield _join(batches)
            batches = []
    if batches:
        yield _join(batches)


def _join(parts: Sequence[Embeddings]) -> Embeddings:
    return Embeddings(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _read(path: Path, wanted: Set[bytes]) -> tuple[list[bytes], Embeddings] | None:
    """The wanted items of a part. None if it has none; a damaged file is removed."""
    try:
        with safe_open(path, "pt") as file:
            keys = [row.tobytes() for row in file.get_tensor("key").numpy()]
            chosen = [index for index, key in enumerate(keys) if key in wanted]
            if not chosen:
                return None
            part = Embeddings(*(file.get_tensor(name)[chosen] for name in Embeddings._fields))
    except FileNotFoundError:  # another process has made room
        return None
    except (SafetensorError, OSError) as error:
        forget_damaged(path, error)
        return None
    use(path)
    return [keys[index] for index in chosen], part


def _keep(keys: Sequence[bytes], part: Embeddings, prefix: Path) -> None:
    path = prefix.with_name(f"{prefix.name}.{hashlib.sha256(b''.join(keys)).hexdigest()[:16]}.safetensors")
    key = torch.tensor([list(key) for key in keys], dtype=torch.uint8)
    keep(path, lambda path: save_tensors({"key": key, **part._asdict()}, path))


def _key(item: Item) -> bytes:
    """16 bytes that stand for the image and the text."""
    return hashlib.sha256(item.read_image() + b"\0" + item.text.encode()).digest()[:16]


def _fingerprint(model: Classifier, preprocessor: Preprocessor) -> str:
    """What decides an item's embeddings besides the item: weights and preprocessing."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(preprocessor.spec)).encode())
    digest.update(preprocessor.tokenizer_json.encode())
    for backbone in (model.image_encoder.backbone, model.text_encoder.backbone):
        digest.update(str(backbone).encode())
        for tensor in backbone.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
