"""Trains a classifier: load, build, loop, calibrate, save."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from diptych.calibration import fit_temperature
from diptych.config import Config
from diptych.data.catalogue import Item, labels_of, read_catalogue
from diptych.dataset import ItemDataset, load_batches, load_embedded_batches
from diptych.embedding_cache import embed_items, embed_items_once
from diptych.evaluate import classify, evaluate_conditions
from diptych.metrics import summarize
from diptych.models.backbones import build_image_encoder, build_text_encoder, tokenizer_json
from diptych.models.classifier import Classifier, Embeddings, Inputs
from diptych.models.fusion import FusionHead
from diptych.optimization import TrainConfig, build_optimizer
from diptych.plots import plot_history
from diptych.preprocessing import PreprocessingSpec, Preprocessor
from diptych.progress import progress_bar
from diptych.run import Run, update_metrics


def train(config: Config, out: Path) -> Run:
    """Fit one model and write its run directory."""
    started = time.perf_counter()
    torch.manual_seed(config.seed)

    spec = PreprocessingSpec(image_size_px=config.image.size_px, max_tokens=config.text.max_tokens)
    skip = config.data.skip_bad_rows
    train_items = read_catalogue(
        config.data.train_csv, labels=config.data.labels, spec=spec, skip_bad_rows=skip
    )
    labels = config.data.labels or labels_of(train_items)
    val_items = read_catalogue(config.data.val_csv, labels=labels, spec=spec, skip_bad_rows=skip)

    model = Classifier(
        build_image_encoder(config.image),
        build_text_encoder(config.text),
        FusionHead(config.fusion, len(labels)),
    )
    run = Run(
        directory=out,
        config=config,
        labels=labels,
        preprocessor=Preprocessor(spec, tokenizer_json(config.text)),
        model=model,
    )

    history, best_epoch = fit(run, train_items, val_items)

    val_embeddings = embed_items_once(model, val_items, run.preprocessor, title="validation items")
    val_truth = truth_of(val_items, labels)
    model.fusion_head.temperature.fill_(fit_temperature(classify(model, val_embeddings), val_truth))

    run.save()
    (out / "history.json").write_text(json.dumps(history, indent=2) + "\n", "utf-8")
    plot_history(history, best_epoch, out / "training_curves.png")
    summary = {
        "num_items": len(train_items),
        "best_epoch": best_epoch,
        "seconds": round(time.perf_counter() - started, 1),
        "temperature": round(model.fusion_head.temperature.item(), 4),
    }
    update_metrics(out, train=summary, val=evaluate_conditions(model, val_embeddings, val_truth.numpy()))
    return run


def fit(run: Run, train_items: Sequence[Item], val_items: Sequence[Item]) -> tuple[list[dict[str, Any]], int]:
    """Train run.model in place and leave the weights of the best epoch by validation macro-F1 in it.

    returns  a record of each epoch, and the best one's number
    """
    config, model = run.config.train, run.model
    generator = torch.Generator().manual_seed(run.config.seed)
    batches = load_training_batches(run, train_items, generator)
    num_steps = config.epochs * len(batches)
    optimizer, schedule = build_optimizer(model, config, num_steps)
    if config.freeze_backbones:
        val_embeddings = embed_items_once(model, val_items, run.preprocessor, title="validation items")
    val_truth = truth_of(val_items, run.labels)

    history: list[dict[str, Any]] = []
    best_weights: dict[str, Tensor] = {}
    with progress_bar("Training", num_steps) as advance:
        for epoch in range(1, config.epochs + 1):
            model.train()
            losses, num_correct = [], 0
            for batch, truth in batches:
                logits = forward(model, drop_modalities(batch, config, generator))
                loss = F.cross_entropy(logits, truth, label_smoothing=config.label_smoothing)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                num_correct += int((logits.argmax(1) == truth).sum())
                advance(1, status=f"epoch {epoch}  loss {np.mean(losses):.3f}")

            if not config.freeze_backbones:
                val_embeddings = embed_items(model, val_items, run.preprocessor, title="validation items")
            val_logits = classify(model, val_embeddings)
            scores = summarize(val_logits.softmax(1).numpy(), val_truth.numpy())
            record = {
                "epoch": epoch,
                "train_loss": float(np.mean(losses)),
                "train_accuracy": num_correct / len(train_items),
                "val_loss": F.cross_entropy(val_logits, val_truth).item(),
                "val_accuracy": scores["accuracy"],
                "val_macro_f1": scores["macro_f1"],
            }
            if record["val_macro_f1"] > max((earlier["val_macro_f1"] for earlier in history), default=-1):
                best_epoch = epoch
                best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            history.append(record)
    model.load_state_dict(best_weights)
    return history, best_epoch


def load_training_batches(
    run: Run, items: Sequence[Item], generator: torch.Generator
) -> DataLoader[tuple[Inputs | Embeddings, Tensor]]:
    """Shuffled batches: of pictures and words, or where backbones are frozen of their cached embeddings."""
    config = run.config.train
    if config.freeze_backbones:
        embeddings = embed_items_once(run.model, items, run.preprocessor, title="training items")
        return load_embedded_batches(embeddings, truth_of(items, run.labels), config.batch_size, generator)
    dataset = ItemDataset(items, run.labels, run.preprocessor)
    return load_batches(dataset, config.batch_size, config.num_workers, generator)


def drop_modalities(
    batch: Inputs | Embeddings, config: TrainConfig, generator: torch.Generator
) -> Inputs | Embeddings:
    """Take the picture from some items and the words from others, never both from one.

    An item that has only one modality keeps it.
    """
    chance = torch.rand(len(batch.image_present), generator=generator)
    lose_image = (chance < config.drop_image) & batch.text_present
    lose_text = (chance >= 1 - config.drop_text) & batch.image_present
    return batch.keep(image=~lose_image, text=~lose_text)


def forward(model: Classifier, batch: Inputs | Embeddings) -> Tensor:
    """(B, C) float32 logits, through the backbones where the batch has not been through them yet."""
    logits: Tensor = model(batch) if isinstance(batch, Inputs) else model.classify_embeddings(batch)
    return logits


def truth_of(items: Sequence[Item], labels: Sequence[str]) -> Tensor:
    """(N,) int64, each item's label as its index."""
    return torch.tensor([labels.index(item.category) for item in items])
