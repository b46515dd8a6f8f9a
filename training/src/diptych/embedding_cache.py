"""Embeddings of whole splits, computed once for each combination of backbone, preprocessing and data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file

from diptych.cache import cache_directory
from diptych.data.items import Item
from diptych.dataset import ItemDataset, load_batches
from diptych.models.classifier import Classifier, Embeddings
from diptych.preprocessing import Preprocessor
from diptych.progress import track


def embed_items_once(
    model: Classifier, items: Sequence[Item], preprocessor: Preprocessor, *, title: str
) -> Embeddings:
    """`embed_items`, from the cache where these weights have seen these items before."""
    path = cache_directory("embeddings") / f"{_fingerprint(model, items, preprocessor)}.safetensors"
    if path.is_file():
        return Embeddings(**load_file(path))
    embeddings = embed_items(model, items, preprocessor, title=title)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(embeddings._asdict(), unfinished)
    unfinished.rename(path)
    return embeddings


@torch.inference_mode()
def embed_items(
    model: Classifier, items: Sequence[Item], preprocessor: Preprocessor, *, title: str, num_workers: int = 2
) -> Embeddings:
    """The backbones' outputs for all items, in order."""
    model.eval()
    dataset = ItemDataset(items, sorted({item.category for item in items}), preprocessor)
    batches = load_batches(dataset, batch_size=32, num_workers=num_workers)
    device = model.fusion_head.temperature.device
    cpu = torch.device("cpu")
    parts = [
        model.embed(inputs.to(device)).to(cpu)
        for inputs, _ in track(batches, f"Embedding {title}", len(batches))
    ]
    return Embeddings(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _fingerprint(model: Classifier, items: Sequence[Item], preprocessor: Preprocessor) -> str:
    """Everything that decides the embeddings: weights, preprocessing, pictures and words."""
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
