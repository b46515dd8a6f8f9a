"""Trains a classifier: load, build, loop, calibrate, save."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from diptych.calibration import fit_temperature
from diptych.config import Config
from diptych.data.catalogue import Item, labels_of, read_catalogue
from diptych.dataset import EmbeddedItems, ItemDataset, load_batches
from diptych.embedding_cache import embed_items, embed_items_once
from diptych.evaluate import evaluate_conditions
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
    generator = torch.Generator().manual_seed(config.seed)

    # Load
    spec = PreprocessingSpec(image_size_px=config.image.size_px, max_tokens=config.text.max_tokens)
    skip = config.data.skip_bad_rows
    train_items = read_catalogue(config.data.train_csv, labels=config.data.labels, spec=spec, skip_bad_rows=skip)
    labels = config.data.labels or labels_of(train_items)
    val_items = read_catalogue(config.data.val_csv, labels=labels, spec=spec, skip_bad_rows=skip)
    val_truth = torch.tensor([labels.index(item.category) for item in val_items])

    # Build
    preprocessor = Preprocessor(spec, tokenizer_json(config.text))
    model = Classifier(
        build_image_encoder(config.image),
        build_text_encoder(config.text),
        FusionHead(config.fusion, len(labels)),
    )
    run = Run(directory=out, config=config, labels=labels, preprocessor=preprocessor, model=model)
    backbones = [model.image_encoder.backbone, model.text_encoder.backbone]
    if config.train.freeze_backbones:
        for backbone in backbones:
            backbone.requires_grad_(False)
        batches = embedded_batches(run, train_items, generator)
        val_embeddings = embed_items_once(model, val_items, preprocessor, title="validation items")
    else:
        dataset = ItemDataset(train_items, labels, preprocessor)
        batches = load_batches(dataset, config.train.batch_size, config.train.num_workers, generator)
    optimizer, schedule = build_optimizer(backbones, model, config.train, config.train.epochs * len(batches))

    # Loop
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    best_score, best_epoch = -1.0, 0
    with progress_bar() as progress:
        bar = progress.add_task("Training", total=config.train.epochs * len(batches), status="")
        for epoch in range(1, config.train.epochs + 1):
            model.train()
            losses, num_correct = [], 0
            for batch, truth in batches:
                kept = drop_modalities(batch, config.train, generator)
                logits = model(kept) if isinstance(kept, Inputs) else model.classify_embeddings(kept)
                loss = F.cross_entropy(logits, truth, label_smoothing=config.train.label_smoothing)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
                num_correct += int((logits.argmax(1) == truth).sum())
                progress.update(bar, advance=1, status=f"epoch {epoch}  loss {np.mean(losses):.3f}")
            if not config.train.freeze_backbones:
                val_embeddings = embed_items(model, val_items, preprocessor, title="validation items")
            val_logits = classify(model, val_embeddings)
            scores = summarize(val_logits.softmax(1).numpy(), val_truth.numpy())
            history.append(
                {
                    "epoch": epoch,
                    "train_loss": float(np.mean(losses)),
                    "train_accuracy": num_correct / len(train_items),
                    "val_loss": F.cross_entropy(val_logits, val_truth).item(),
                    "val_accuracy": scores["accuracy"],
                    "val_macro_f1": scores["macro_f1"],
                }
            )
            if scores["macro_f1"] > best_score:
                best_score, best_epoch = scores["macro_f1"], epoch
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    # Calibrate and save
    model.load_state_dict(best)
    val_embeddings = embed_items_once(model, val_items, preprocessor, title="validation items")
    temperature = fit_temperature(classify(model, val_embeddings), val_truth)
    model.fusion_head.temperature.fill_(temperature)
    run.save()
    (out / "history.json").write_text(json.dumps(history, indent=2) + "\n", "utf-8")
    plot_history(history, best_epoch, out / "training_curves.png")
    update_metrics(
        out,
        train={
            "num_items": len(train_items),
            "best_epoch": best_epoch,
            "seconds": round(time.perf_counter() - started, 1),
            "temperature": round(temperature, 4),
        },
        val=evaluate_conditions(model, val_embeddings, val_truth.numpy()),
    )
    return run


def embedded_batches(
    run: Run, items: Sequence[Item], generator: torch.Generator
) -> DataLoader[tuple[Embeddings, Tensor]]:
    """Shuffled batches of embeddings from the cache: an epoch takes less than a second."""
    embeddings = embed_items_once(run.model, items, run.preprocessor, title="training items")
    truth = torch.tensor([run.labels.index(item.category) for item in items])
    batches = BatchSampler(RandomSampler(truth, generator=generator), run.config.train.batch_size, drop_last=False)
    return DataLoader(EmbeddedItems(embeddings, truth), sampler=batches, batch_size=None)


def drop_modalities(
    batch: Inputs | Embeddings, config: TrainConfig, generator: torch.Generator
) -> Inputs | Embeddings:
    """Take the picture from some items and the words from others, never both from one.

    An item that has only one modality keeps it.
    """
    chance = torch.rand(len(batch.image_present), generator=generator)
    lose_image = (chance < config.drop_image) & batch.text_present
    lose_text = (chance > 1 - config.drop_text) & batch.image_present
    return batch.keep(image=~lose_image, text=~lose_text)


@torch.inference_mode()
def classify(model: Classifier, embeddings: Embeddings) -> Tensor:
    """(N, C) float32 logits, with dropout off."""
    return model.eval().classify_embeddings(embeddings)
