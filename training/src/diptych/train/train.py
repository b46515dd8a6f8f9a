"""Trains a classifier: load, build, loop, calibrate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from diptych.config.loader import Config
from diptych.data.catalogue import labels_of, read_split
from diptych.data.embedding_cache import embed_items, embed_items_once
from diptych.data.examples import choose_examples, write_examples
from diptych.data.items import Item
from diptych.data.labels import check_labels
from diptych.evaluation.calibration import calibrate
from diptych.evaluation.evaluate import evaluate_conditions
from diptych.evaluation.metrics import summarize
from diptych.evaluation.plots import plot_history
from diptych.evaluation.predict import CONDITIONS, classify
from diptych.files import write_json
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier, Embeddings
from diptych.models.text_tokenizers import tokenizer_json
from diptych.runs.directory import UNFINISHED, begin_run, finish_run
from diptych.runs.fingerprint import FINGERPRINT_FILE, fingerprint
from diptych.runs.run import HISTORY_FILE, METRICS_FILE, Run
from diptych.train.parallel import choose_mixed_precision, from_main, gather_interleaved, start_accelerator
from diptych.train.trainer import Position, Trainer
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Preprocessor
from diptych_serving.progress import progress_bar, warn

TENSORBOARD = "tensorboard"


ReadItems = Callable[[Config, Preprocessor], tuple[list[Item], list[Item]]]


def train(config: Config, out: Path, read_items: ReadItems | None = None) -> Run:
    """Train one model and write its run directory. An interrupted run of the same config is resumed.

    Files are written to RUN/unfinished, which replaces RUN when the run is finished.

    read_items  returns the training and validation items; default: those of the config's tables
    """
    accelerator = start_accelerator(config.train.precision)
    torch.manual_seed(config.seed)
    with contextlib.ExitStack() as stack:
        directory = out / UNFINISHED
        from_main(accelerator, lambda: stack.enter_context(begin_run(out)))

        # Load. One process reads and checks the tables, all get the items.
        preprocessor = build_preprocessor(config)
        train_items, val_items = from_main(
            accelerator, lambda: (read_items or read_catalogues)(config, preprocessor)
        )
        labels = config.data.labels or labels_of(train_items)
        val_truth = torch.tensor([labels.index(item.category) for item in val_items])

        # Build.
        model = build_classifier(config.image, config.text, config.fusion, len(labels))
        run = Run(directory=directory, config=config, labels=labels, preprocessor=preprocessor, model=model)
        belongs_to = from_main(accelerator, lambda: fingerprint(run, train_items, val_items))
        trainer = Trainer(run, train_items, accelerator, belongs_to)
        trainer.restore()

        # Loop.
        with progress_bar("Training", config.train.epochs * trainer.steps_per_epoch) as advance:
            position = trainer.position
            advance((position.epoch - 1) * trainer.steps_per_epoch + position.step)
            while not trainer.is_finished:
                trainer.train_epoch(advance)
                val_embeddings = embed_validation(
                    trainer.judged, val_items, preprocessor, accelerator, config
                )
                trainer.finish_epoch(judge(trainer.judged, val_embeddings, val_truth))
                if accelerator.is_main_process:
                    log_to_tensorboard(directory, position.history[-1])

        # Calibrate and save, in the main process.
        trainer.take_best()
        if accelerator.is_main_process:
            with describe_failed_writing(out):
                write_json(directory / FINGERPRINT_FILE, belongs_to)
                write_run(run, position, train_items, val_items, accelerator)
                finish_run(out)
    return dataclasses.replace(run, directory=out)


def write_run(
    run: Run,
    position: Position,
    train_items: Sequence[Item],
    val_items: Sequence[Item],
    accelerator: Accelerator,
) -> None:
    """Calibrate the trained model, and write all files of the run."""
    model, directory = run.model, run.directory
    truth = torch.tensor([run.labels.index(item.category) for item in val_items])
    embeddings = embed_items_once(
        model,
        val_items,
        run.preprocessor,
        title="validation items",
        num_workers=run.config.train.num_workers,
    )
    for note in calibrate(model, embeddings, truth):
        warn(note)
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
        "precision": choose_mixed_precision(run.config.train.precision),
        "temperature": {
            name: round(value, 4)
            for name, value in zip(CONDITIONS, model.fusion_head.temperature.tolist(), strict=True)
        },
    }
    run.save()
    write_examples(choose_examples(val_items, run.preprocessor), directory)
    write_json(directory / HISTORY_FILE, position.history)
    plot_history(position.history, position.best_epoch, directory / "training_curves.png")
    scores = evaluate_conditions(model, embeddings, truth.numpy())
    write_json(directory / METRICS_FILE, {"train": cost, "val": scores})


@contextlib.contextmanager
def describe_failed_writing(out: Path) -> Iterator[None]:
    """Turn a full disk into a UserError. A checkpoint or an earlier run stays."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out}: cannot write the finished run: {error.strerror or error}. Make room and run the same "
            "command again: it resumes at the end"
        ) from error


def build_preprocessor(config: Config) -> Preprocessor:
    """The preprocessor of a run, with the limits of training."""
    return Preprocessor(config.spec, tokenizer_json(config.text))


def read_catalogues(config: Config, preprocessor: Preprocessor) -> tuple[list[Item], list[Item]]:
    """Training and validation items. A validation category without training items is an error."""
    data = config.data
    if data.labels is not None:
        check_labels(data.labels, "data.labels")
    train_items = read_split(data.train_csv, data, labels=data.labels, preprocessor=preprocessor)
    found = labels_of(train_items)
    check_labels(found, f"{data.train_csv}: the categories")
    if unseen := [label for label in data.labels or () if label not in found]:
        warn(f"{data.train_csv}: no item of {', '.join(unseen)}, which data.labels names: never answered")
    val_items = read_split(data.val_csv, data, labels=labels_of(train_items), preprocessor=preprocessor)
    return train_items, val_items


def embed_validation(
    model: Classifier,
    items: Sequence[Item],
    preprocessor: Preprocessor,
    accelerator: Accelerator,
    config: Config,
) -> Embeddings:
    """From the cache if backbones are frozen; else each process embeds its share."""
    if config.train.freeze_backbones:
        with accelerator.main_process_first():
            return embed_items_once(
                model, items, preprocessor, title="validation items", num_workers=config.train.num_workers
            )
    share = items[accelerator.process_index :: accelerator.num_processes]
    mine = embed_items(
        model, share, preprocessor, title="validation items", num_workers=config.train.num_workers
    )
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
    """Of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
