"""Memory and processor time of a training step of ResNet-50 with BERT-base, in each way to train backbones.

    OMP_NUM_THREADS=1 python -m bench.finetuning lora_rank=8

Weights are random and data are made up: 8 items, 224 pixels, 64 tokens. It prints a row of a table:
settings, trained parameters, peak memory of the process, mean processor time of the last two of three steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import msgspec
import torch
from torch.nn import functional as F
from transformers import BertConfig

from diptych.config.sections import FusionConfig, ImageConfig, TextConfig, TrainConfig
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier, Embeddings, Inputs
from diptych.train.optimization import build_optimizer
from diptych.train.partial import choose_trained_weights
from diptych.train.train import peak_memory_mb
from diptych.train.trainer import freeze_batch_norm
from tests.helpers.tiny_model import save_tokenizer

NUM_ITEMS, NUM_TOKENS, NUM_LABELS = 8, 64, 11


def build() -> Classifier:
    """The pair with random weights."""
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(Path(directory))
        BertConfig().save_pretrained(directory)
        text = TextConfig(backbone=directory, weights="random", max_tokens=NUM_TOKENS)
        image = ImageConfig(backbone="timm:resnet50", weights="random")
        return build_classifier(image, text, FusionConfig(), NUM_LABELS)


def random_batch(model: Classifier, config: TrainConfig) -> Inputs | Embeddings:
    """Items, or where backbones are frozen their embeddings."""
    ids = torch.randint(5, 25, (NUM_ITEMS, NUM_TOKENS))
    pixels = torch.randint(0, 256, (NUM_ITEMS, 3, 224, 224), dtype=torch.uint8)
    batch = Inputs(pixels, torch.ones(NUM_ITEMS, dtype=torch.bool), ids, torch.ones_like(ids))
    if not config.freeze_backbones:
        return batch
    with torch.no_grad():
        return model.embed(batch)


def measure_step_s(config: TrainConfig) -> tuple[float, float]:
    """Millions of trained parameters, and seconds of processor time of a step."""
    model = build()
    choose_trained_weights(model, config)
    optimizer, _ = build_optimizer(model, config, num_steps=10)
    model.train()
    freeze_batch_norm(model.image_encoder.backbone, frozen_only=not config.freeze_batch_norm)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        batch = random_batch(model, config)
        F.cross_entropy(model(batch), torch.arange(NUM_ITEMS)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return trained / 1e6, sum(seconds[1:]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures a training step.")
    parser.add_argument("settings", nargs="*", help="keys of [train], such as unfreeze_layers=2")
    settings = parser.parse_args().settings
    torch.manual_seed(0)
    tree = {key: value for key, _, value in (setting.partition("=") for setting in settings)}
    trained, step_s = measure_step_s(msgspec.convert(tree, TrainConfig, strict=False))
    way = ", ".join(f"`{setting}`" for setting in settings) or "all weights"
    print(f"| {way} | {trained:.1f} M | {peak_memory_mb():,} MB | {step_s:.1f} s |")  # noqa: T201


if __name__ == "__main__":
    main()
