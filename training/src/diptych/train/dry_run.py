"""What training will cost, from ten steps that are taken and thrown away."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from diptych.config.loader import Config
from diptych.data.catalogue import labels_of
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier
from diptych.runs.run import Run
from diptych.train.epochs import num_steps
from diptych.train.parallel import start_accelerator
from diptych.train.train import build_preprocessor, peak_memory_mb, read_catalogues
from diptych.train.trainer import Trainer
from diptych_serving.errors import UserError

WARM_UP_STEPS = 2
MEASURED_STEPS = 10


def dry_run(config: Config) -> str:
    """Parameters, memory, and the time of an epoch, as lines of text. Nothing is kept but cached embeddings.

    raises  UserError where several processes train
    """
    accelerator = start_accelerator(config.train.precision)
    if accelerator.num_processes > 1:
        raise UserError("--dry-run: measures one process; start it without torchrun or accelerate")
    torch.manual_seed(config.seed)
    preprocessor = build_preprocessor(config)
    items, _ = read_catalogues(config, preprocessor)
    labels = config.data.labels or labels_of(items)
    model = build_classifier(config.image, config.text, config.fusion, len(labels))
    num_items = (WARM_UP_STEPS + MEASURED_STEPS) * config.train.batch_size
    some = list(itertools.islice(itertools.cycle(items), num_items))
    ends: list[float] = []
    with tempfile.TemporaryDirectory(prefix="diptych-dry-run-") as directory:
        run = Run(
            directory=Path(directory), config=config, labels=labels, preprocessor=preprocessor, model=model
        )
        started = time.perf_counter()
        trainer = Trainer(run, some, accelerator, {})
        embedding_s = (time.perf_counter() - started) / num_items * len(items)
        trainer.train_epoch(lambda *_, **__: ends.append(time.perf_counter()))
    step_s = statistics.median(end - start for start, end in itertools.pairwise(ends[WARM_UP_STEPS - 1 :]))
    steps = num_steps(len(items), config.train.batch_size, config.train.accumulate)
    lines = [*_count_parameters(model), *_estimate_memory(model)]
    if config.train.freeze_backbones:
        lines.append(f"embedding   about {_duration(embedding_s)} once for {len(items)} training items")
    epoch_s, epochs = step_s * steps, config.train.epochs
    lines += [
        f"step        {step_s:.2f} s for {config.train.batch_size} items, the median of {MEASURED_STEPS}",
        f"epoch       about {_duration(epoch_s)} for {steps} steps, without validation",
        f"training    about {_duration(epoch_s * epochs)} for {epochs} epochs",
    ]
    return "\n".join(lines)


def _count_parameters(model: Classifier) -> list[str]:
    image, text = model.image_encoder.backbone, model.text_encoder.backbone
    parts: dict[str, nn.Module] = {"parameters": model, "  image": image, "  text": text}
    return [
        f"{name:<12}{_count(part) / 1e6:,.1f} M, {_count(part, trained=True) / 1e6:,.1f} M of them trained"
        for name, part in parts.items()
    ]


def _estimate_memory(model: nn.Module) -> list[str]:
    """Weights, gradients and the two moments of AdamW are float32; the rest is what a batch leaves behind."""
    weights, gradients = 4 * _count(model) / 2**20, 4 * _count(model, trained=True) / 2**20
    return [
        f"memory      {peak_memory_mb():,} MB at most in these steps; of them {weights:,.0f} MB weights, "
        f"{gradients:,.0f} MB gradients, {2 * gradients:,.0f} MB optimizer"
    ]


def _count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not trained)


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1), ("min", 60)):
        if seconds < 120 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
