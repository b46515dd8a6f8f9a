"""Trains a classifier: load, build, loop, calibrate, save."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from diptych.calibration import fit_temperature
from diptych.checkpoint import remove_checkpoint
from diptych.config import Config
from diptych.data.catalogue import labels_of, read_split
from diptych.data.items import Item
from diptych.embedding_cache import embed_items, embed_items_once
from diptych.evaluate import evaluate_conditions
from diptych.metrics import summarize
from diptych.models.backbones import build_classifier, tokenizer_json
from diptych.models.classifier import Classifier, Embeddings
from diptych.parallel import choose_precision, from_main, gather_interleaved, start_accelerator
from diptych.plots import plot_history
from diptych.predict import classify
from diptych.preprocessing import PreprocessingSpec, Preprocessor
from diptych.progress import progress_bar
from diptych.run import Run, update_metrics
from diptych.trainer import Trainer

TENSORBOARD = "tensorboard"


def train(config: Config, out: Path) -> Run:
    """Fit one model and write its run directory; an interrupted run of the same config goes on."""
    accelerator = start_accelerator(config.train.precision)
    torch.manual_seed(config.seed)

    # Load. One process reads and judges the catalogues, all get the items.
    spec = PreprocessingSpec(image_size_px=config.image.size_px, max_tokens=config.text.max_tokens)
    train_items, val_items = from_main(accelerator, lambda: read_catalogues(config, spec))
    labels = config.data.labels or labels_of(train_items)
    val_truth = torch.tensor([labels.index(item.category) for item in val_items])

    # Build.
    model = build_classifier(config.image, config.text, config.fusion, len(labels))
    preprocessor = Preprocessor(spec, tokenizer_json(config.text))
    run = Run(directory=out, config=config, labels=labels, preprocessor=preprocessor, model=model)
    trainer = Trainer(run, train_items, accelerator)
    trainer.restore()

    # Loop.
    with progress_bar("Training", config.train.epochs * trainer.steps_per_epoch) as advance:
        position = trainer.position
        advance((position.epoch - 1) * trainer.steps_per_epoch + position.step)
        while not trainer.is_finished:
            trainer.train_epoch(advance)
            val_embeddings = embed_validation(trainer.judged, val_items, preprocessor, accelerator, config)
            trainer.finish_epoch(judge(trainer.judged, val_embeddings, val_truth))
            if accelerator.is_main_process:
                log_to_tensorboard(out, position.history[-1])

    # Calibrate and save.
    model = trainer.take_best()
    if not accelerator.is_main_process:
        return run  # the main process does the rest
    val_embeddings = embed_items_once(model, val_items, preprocessor, title="validation items")
    model.fusion_head.temperature.fill_(fit_temperature(classify(model, val_embeddings), val_truth))
    run.save()
    (out / "history.json").write_text(json.dumps(position.history, indent=2) + "\n", "utf-8")
    plot_history(position.history, position.best_epoch, out / "training_curves.png")
    num_epochs = position.epoch - 1
    cost = {
        "num_items": len(train_items),
        "num_epochs": num_epochs,
        "best_epoch": position.best_epoch,
        "seconds": round(position.seconds, 1),
        "items_per_second": round(num_epochs * len(train_items) / position.seconds, 1),
        "peak_memory_mb": peak_memory_mb(),
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "precision": choose_precision(config.train.precision),
        "temperature": round(model.fusion_head.temperature.item(), 4),
    }
    update_metrics(out, train=cost, val=evaluate_conditions(model, val_embeddings, val_truth.numpy()))
    remove_checkpoint(out)
    return run


def read_catalogues(config: Config, spec: PreprocessingSpec) -> tuple[list[Item], list[Item]]:
    """Training and validation items. A validation category that training never saw is an error."""
    data = config.data
    train_items = read_split(data.train_csv, data, labels=data.labels, spec=spec)
    return train_items, read_split(data.val_csv, data, labels=labels_of(train_items), spec=spec)


def embed_validation(
    model: Classifier,
    items: Sequence[Item],
    preprocessor: Preprocessor,
    accelerator: Accelerator,
    config: Config,
) -> Embeddings:
    """From the cache where backbones are frozen; else each process embeds its share."""
    if config.train.freeze_backbones:
        with accelerator.main_process_first():
            return embed_items_once(model, items, preprocessor, title="validation items")
    share = items[accelerator.process_index :: accelerator.num_processes]
    mine = embed_items(model, share, preprocessor, title="validation items")
    return Embeddings(*(gather_interleaved(accelerator, tensor) for tensor in mine))


def judge(model: Classifier, embeddings: Embeddings, truth: Tensor) -> dict[str, float]:
    """Loss, accuracy and macro-F1 on the validation items."""
    logits = classify(model, embeddings)
    scores = summarize(logits.softmax(1).numpy(), truth.numpy())
    return {
        "val_loss": F.cross_entropy(logits, truth).item(),
        "val_accuracy": scores["accuracy"],
        "val_macro_f1": scores["macro_f1"],
    }


def log_to_tensorboard(out: Path, record: dict[str, float]) -> None:
    """One point of every curve."""
    with SummaryWriter(out / TENSORBOARD) as writer:
        for name, value in record.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(record["epoch"]))


def peak_memory_mb() -> int:
    """Of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
