"""Cross-validation: each item is answered by a model that was trained without it and its near-duplicates.

OUT/fold-1 ... are ordinary runs, as is OUT/averaged, which is written if backbones are frozen.
OUT/cross_validation.json is written last, so if it exists, everything is complete.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.analysis.doubtful import CLEANLAB_IS_MISSING, has_cleanlab, rank_suspects, write_suspects
from diptych.analysis.fold_average import write_average
from diptych.analysis.fold_baselines import answer_baselines
from diptych.config.loader import Config
from diptych.data.catalogue import labels_of, read_split
from diptych.data.embedding_cache import embed_items_once
from diptych.data.folds import Fold, plan_folds
from diptych.data.groups import group_items
from diptych.data.items import Item
from diptych.evaluation.calibration import fit_temperatures
from diptych.evaluation.metrics import ece_if_calibrated, score_groups, summarize
from diptych.evaluation.predict import CONDITIONS, Answers, classify
from diptych.files import write_json
from diptych.runs.fingerprint import FINGERPRINT_FILE, fingerprint_items, fingerprint_settings
from diptych.runs.run import WEIGHTS_FILE, load_run
from diptych.train.parallel import from_main, start_accelerator
from diptych.train.train import build_preprocessor, describe_failed_writing, read_catalogues, train
from diptych_serving.errors import UserError
from diptych_serving.progress import console, warn

RESULTS_FILE = "cross_validation.json"
ANSWERS_FILE = "out_of_fold.csv"
SUSPECTS_FILE = "doubtful.csv"
AVERAGED = "averaged"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
    """The N items of all tables, and their folds.

    truth, groups  (N,) int64
    """

    items: list[Item]
    labels: list[str]
    truth: NDArray[np.int64]
    groups: NDArray[np.int64]
    folds: list[Fold]


def cross_validate(config: Config, out: Path, num_folds: int) -> dict[str, Any]:
    """Train a model for each fold, and write its answers to the items that it was not trained on.

    An existing fold of the same config and items is not trained again.
    returns  the content of cross_validation.json
    """
    if out.is_file() or (out / WEIGHTS_FILE).is_file():
        found = "is a file" if out.is_file() else "holds a run"
        raise UserError(f"--out {out}: {found}; name another directory for the folds")
    accelerator = start_accelerator(config.train.precision)
    data = from_main(accelerator, lambda: _read_items(config, num_folds))
    if accelerator.is_main_process:
        for name in (RESULTS_FILE, ANSWERS_FILE, SUSPECTS_FILE, f"{AVERAGED}/{WEIGHTS_FILE}"):
            (out / name).unlink(missing_ok=True)  # of an earlier cross-validation
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, labels=data.labels, test_csv=None)
    )
    directories = [out / f"fold-{number}" for number in range(1, num_folds + 1)]
    for directory, fold in zip(directories, data.folds, strict=True):
        splits = (_take(data.items, fold.train), _take(data.items, fold.val))
        if not from_main(accelerator, partial(_is_current, directory, config, *splits)):
            console.print(f"{directory}: {len(splits[0])} training items", style="bold")
            train(config, directory, read_items=partial(_given, splits))
    if not accelerator.is_main_process:
        return {}
    answers, temperatures = _answer_out_of_fold(data, directories)
    out_of_fold = {name: _score(data, each) for name, each in answers.items()}
    results = {
        "num_folds": num_folds,
        "out_of_fold": out_of_fold,
        "by_fold": [_score_fold(data, answers, fold) for fold in data.folds],
        "baselines": {
            baseline: {name: _score(data, each) for name, each in of_baseline.items()}
            for baseline, of_baseline in answer_baselines(
                config, data.items, data.truth, data.folds, data.labels
            ).items()
        },
        "temperature": temperatures,
        "num_labels": len(data.labels),
    }
    both = answers["both"].probabilities
    with describe_failed_writing(out):
        _write_answers(data, both, out / ANSWERS_FILE)
        if has_cleanlab():
            suspects = rank_suspects(data.items, data.labels, data.truth, both)
            write_suspects(suspects, out / SUSPECTS_FILE)
        else:
            warn(f"no {SUSPECTS_FILE}: {CLEANLAB_IS_MISSING}")
        if config.train.freeze_backbones:
            write_average(
                directories,
                out / AVERAGED,
                config=config,
                held_out=[_take(data.items, fold.held_out) for fold in data.folds],
                temperatures=temperatures,
                out_of_fold=out_of_fold,
            )
        write_json(out / RESULTS_FILE, results)
    return results


def _read_items(config: Config, num_folds: int) -> Items:
    """Items of the training, the validation and, if there is one, the test table."""
    preprocessor = build_preprocessor(config)
    train_items, val_items = read_catalogues(config, preprocessor)
    labels = config.data.labels or labels_of(train_items)
    items = [*train_items, *val_items]
    if config.data.test_csv is not None:
        items += read_split(config.data.test_csv, config.data, labels=labels, preprocessor=preprocessor)
    truth = np.array([labels.index(item.category) for item in items])
    groups = group_items(items, preprocessor.spec)
    chooses_epoch = config.train.keep != "last"
    folds = plan_folds(truth, groups, num_folds, seed=config.seed, chooses_epoch=chooses_epoch)
    return Items(items=items, labels=labels, truth=truth, groups=groups, folds=folds)


def _given(splits: tuple[list[Item], list[Item]], *_: object) -> tuple[list[Item], list[Item]]:
    return splits


def _is_current(
    directory: Path, config: Config, train_items: Sequence[Item], val_items: Sequence[Item]
) -> bool:
    """Whether there is a finished run of this config on these items."""
    try:
        found = json.loads((directory / FINGERPRINT_FILE).read_text("utf-8"))
        splits = {"training items": train_items, "validation items": val_items}
        digests = {**fingerprint_settings(config), **fingerprint_items(config.data, splits)}
        return found.items() >= digests.items()
    except (OSError, ValueError):
        return False


def _answer_out_of_fold(
    data: Items, directories: Sequence[Path]
) -> tuple[dict[str, Answers], dict[str, float]]:
    """Each fold's answers to its held-out items, and the temperatures for all items.

    A fold's answers are calibrated with the items of the other folds.
    """
    num_items = len(data.items)
    logits = {name: torch.zeros(num_items, len(data.labels)) for name in CONDITIONS}
    has_image, has_text = (torch.zeros(num_items, dtype=torch.bool) for _ in range(2))
    for directory, fold in zip(directories, data.folds, strict=True):
        run = load_run(directory)
        held_out = _take(data.items, fold.held_out)
        embeddings = embed_items_once(
            run.model,
            held_out,
            run.preprocessor,
            title="held-out items",
            num_workers=run.config.train.num_workers,
        )
        has_image[fold.held_out], has_text[fold.held_out] = embeddings.image_present, embeddings.text_present
        for name, (image, text) in CONDITIONS.items():
            logits[name][fold.held_out] = classify(run.model, embeddings.keep(image=image, text=text))
    probabilities = _calibrate_each_fold(data, logits, has_image, has_text)
    counted = {"both": has_image | has_text, "image_only": has_image, "text_only": has_text}
    answers = {
        name: Answers(probabilities[name], rows.numpy()) for name, rows in counted.items() if rows.any()
    }
    return answers, fit_temperatures(logits, has_image, has_text, torch.from_numpy(data.truth))


def _calibrate_each_fold(
    data: Items, logits: Mapping[str, Tensor], has_image: Tensor, has_text: Tensor
) -> dict[str, NDArray[np.float32]]:
    truth = torch.from_numpy(data.truth)
    calibrated = {name: torch.zeros_like(each) for name, each in logits.items()}
    for fold in data.folds:
        held_out = torch.from_numpy(fold.held_out)
        others = torch.ones(len(truth), dtype=torch.bool)
        others[held_out] = False
        temperatures = fit_temperatures(
            {name: each[others] for name, each in logits.items()},
            has_image[others],
            has_text[others],
            truth[others],
        )
        alone = torch.where(has_image, temperatures["image_only"], temperatures["text_only"])
        as_they_are = torch.where(has_image & has_text, temperatures["both"], alone)
        for name, each in logits.items():
            temperature = as_they_are[held_out, None] if name == "both" else temperatures[name]
            calibrated[name][held_out] = (each[held_out] / temperature).softmax(1)
    return {name: each.numpy() for name, each in calibrated.items()}


def _score(data: Items, answers: Answers) -> dict[str, Any]:
    probabilities, counted = answers
    return {
        **score_groups(probabilities[counted], data.truth[counted], data.groups[counted]),
        "ece_if_calibrated": round(ece_if_calibrated(probabilities[counted]), 6),
    }


def _score_fold(data: Items, answers: Mapping[str, Answers], fold: Fold) -> dict[str, Any]:
    scores = {}
    for name, (probabilities, counted) in answers.items():
        rows = fold.held_out[counted[fold.held_out]]
        if len(rows):
            scores[name] = summarize(probabilities[rows], data.truth[rows])
    return scores


def _write_answers(data: Items, probabilities: NDArray[np.float32], path: Path) -> None:
    """One row for each item: its place, group and fold, and the answer to the whole item."""
    fold_of = np.zeros(len(data.items), np.int64)
    for number, fold in enumerate(data.folds, start=1):
        fold_of[fold.held_out] = number
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ("place", "description", "category", "fold", "group", "predicted")
        writer.writerow((*columns, *(f"p({label})" for label in data.labels)))
        for index, (item, row) in enumerate(zip(data.items, probabilities, strict=True)):
            numbers = (fold_of[index], data.groups[index], data.labels[row.argmax()])
            writer.writerow((item.place, item.text, item.category, *numbers, *(f"{p:.6f}" for p in row)))


def _take(items: Sequence[Item], rows: NDArray[np.int64]) -> list[Item]:
    return [items[row] for row in rows]
