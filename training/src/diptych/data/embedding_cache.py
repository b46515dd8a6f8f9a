"""Embeddings of whole splits, computed once for each combination of backbone, preprocessing and data."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diptych.data.dataset import ItemDataset, load_batches
from diptych.data.items import Item
from diptych.files import save_tensors
from diptych.models.classifier import Classifier, Embeddings
from diptych_serving.cache import cache_directory, forget_damaged, keep, use
from diptych_serving.preprocessing import Preprocessor
from diptych_serving.progress import progress_bar

BATCH_SIZE = 32
# The most that an interruption loses. Each part is a file until all exist.
ITEMS_OF_A_PART = 256


def embed_items_once(
    model: Classifier, items: Sequence[Item], preprocessor: Preprocessor, *, title: str, num_workers: int
) -> Embeddings:
    """`embed_items`, from the cache if these weights have embedded these items before."""
    directory = cache_directory("embeddings")
    name = _fingerprint(model, items, preprocessor)
    path = directory / f"{name}.safetensors"
    if (whole := _read(path)) is not None and len(whole.image) == len(items):
        return whole

    parts: list[Embeddings] = []
    files: list[Path] = []
    start = 0
    while (part := _read(directory / f"{name}.from-{start}.safetensors")) is not None:
        parts.append(part)
        files.append(directory / f"{name}.from-{start}.safetensors")
        start += len(part.image)
    with progress_bar(f"Embedding {title}", len(items)) as advance:
        advance(start)
        unsaved: list[Embeddings] = []
        for batch in _embed(model, items[start:], preprocessor, num_workers):
            parts.append(batch)
            unsaved.append(batch)
            advance(len(batch.image))
            num_unsaved = sum(len(each.image) for each in unsaved)
            if num_unsaved >= ITEMS_OF_A_PART:
                files.append(directory / f"{name}.from-{start}.safetensors")
                _keep(_join(unsaved), files[-1])
                start, unsaved = start + num_unsaved, []
    embeddings = _join(parts)
    _keep(embeddings, path)
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink()
    return embeddings


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


def _join(parts: Sequence[Embeddings]) -> Embeddings:
    return Embeddings(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _read(path: Path) -> Embeddings | None:
    """None if there is none; a damaged file is removed."""
    if not path.is_file():
        return None
    try:
        embeddings = Embeddings(**load_file(path))
    except (SafetensorError, TypeError, OSError) as error:
        forget_damaged(path, error)
        return None
    use(path)
    return embeddings


def _keep(embeddings: Embeddings, path: Path) -> None:
    keep(path, lambda path: save_tensors(embeddings._asdict(), path))


def _fingerprint(model: Classifier, items: Sequence[Item], preprocessor: Preprocessor) -> str:
    """Everything that decides the embeddings: weights, preprocessing, images and texts."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(preprocessor.spec)).encode())
    digest.update(preprocessor.tokenizer_json.encode())
    for backbone in (model.image_encoder.backbone, model.text_encoder.backbone):
        digest.update(str(backbone).encode())
        for tensor in backbone.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    for item in items:
        digest.update(item.read_image())
        digest.update(b"\0" + item.text.encode() + b"\0")
    return digest.hexdigest()[:32]
