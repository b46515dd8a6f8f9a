"""An ablation: the same config with one part changed, over several seeds, beside simple baselines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from diptych.analysis.doubtful import linear_probe, probe_features
from diptych.config.loader import Config
from diptych.data.catalogue import labels_of, read_split
from diptych.data.embedding_cache import embed_items_once
from diptych.data.items import Item
from diptych.evaluation.evaluate import evaluate
from diptych.evaluation.metrics import summarize
from diptych.files import write_json
from diptych.models.fusion import FUSIONS
from diptych.runs.fingerprint import FINGERPRINT_FILE, fingerprint_items, fingerprint_settings
from diptych.runs.run import Run, read_metrics
from diptych.train.train import build_preprocessor, read_catalogues, train
from diptych_serving.errors import UserError
from diptych_serving.progress import console

ABLATION_FILES = TABLE_FILE, PICTURE_FILE = "ablation.json", "ablation.png"


class Trial(NamedTuple):
    """One variant trained with one seed.

    scores     of the test split, by condition, as `diptych evaluate` writes them
    f1         of each category, with both modalities
    num_items  of each category in the test split
    """

    scores: dict[str, dict[str, Any]]
    f1: dict[str, float]
    num_items: dict[str, int]


Results = Mapping[str, Sequence[Trial]]


def ablate(configs: Mapping[str, Config], out: Path, seeds: Sequence[int]) -> Results:
    """Train every config with every seed.

    An existing run with the same config and items, images included, is used; others are trained again.
    configs  by name, as made by `variants`
    """
    data = {repr(config.data): config for config in configs.values()}
    digests = {key: _digest_data(config) for key, config in data.items()}
    for name in ABLATION_FILES:
        (out / name).unlink(missing_ok=True)  # of an earlier ablation
    results: dict[str, list[Trial]] = {name: [] for name in configs}
    for seed in seeds:  # seed by seed, so that an interrupted ablation holds complete rounds
        for name, config in configs.items():
            directory = out / f"{name.replace(' ', '_')}-{seed}"
            seeded = dataclasses.replace(config, seed=seed)
            if not _is_current(directory, seeded, digests[repr(config.data)]):
                console.print(f"{name}, seed {seed}", style="bold", markup=False)
                evaluate(train(seeded, directory))
            results[name].append(_read_trial(directory))
    table = {name: [trial._asdict() for trial in trials] for name, trials in results.items()}
    write_json(out / TABLE_FILE, table)
    return results


def variants(config: Config) -> dict[str, Config]:
    """Each fusion, each balancing, each way to learn absent modalities, and each modality alone.

    A variant that equals the config is left out.
    """

    def trained(**changes: Any) -> Config:
        return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))

    fusions = {
        kind: dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, kind=kind))
        for kind in FUSIONS
    }
    others = {
        **{f"balance {kind}": trained(balance=kind) for kind in ("none", "weights", "sampling")},
        "modality dropout": trained(drop_image=0.15, drop_text=0.15, alone_loss=0.0),
        "loss of each alone": trained(drop_image=0.0, drop_text=0.0, alone_loss=0.5),
        "neither": trained(drop_image=0.0, drop_text=0.0, alone_loss=0.0),
        "picture alone": trained(drop_image=0.0, drop_text=1.0, alone_loss=0.0),
        "words alone": trained(drop_image=1.0, drop_text=0.0, alone_loss=0.0),
    }
    return fusions | {name: variant for name, variant in others.items() if variant != config}


def measure_baselines(run: Run) -> dict[str, dict[str, Any]]:
    """TF-IDF with logistic regression on the texts, if there are any, and a linear probe on the run's
    embeddings."""
    data = run.config.data
    if data.test_csv is None:
        raise UserError(f"{run.directory}: has no data.test_csv")
    train_items, test_items = (
        read_split(table, data, labels=run.labels, preprocessor=run.preprocessor)
        for table in (data.train_csv, data.test_csv)
    )
    train_truth, test_truth = (_truth(items, run.labels) for items in (train_items, test_items))
    tf_idf = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=500)
    )
    probe: Any = linear_probe()
    train_features, test_features = (
        probe_features(
            embed_items_once(
                run.model,
                items,
                run.preprocessor,
                title=f"{title} items",
                num_workers=run.config.train.num_workers,
            )
        )
        for items, title in ((train_items, "training"), (test_items, "test"))
    )
    probe.fit(train_features, train_truth)
    num_labels = len(run.labels)
    scores = {
        "linear probe": summarize(
            _for_all_labels(probe.predict_proba(test_features), probe.classes_, num_labels), test_truth
        )
    }
    try:
        tf_idf.fit([item.text for item in train_items], train_truth)
    except ValueError:  # no word in all texts, for example if there are only images
        return scores
    answers = tf_idf.predict_proba([item.text for item in test_items])
    answers = _for_all_labels(answers, tf_idf.classes_, num_labels)
    return {"TF-IDF, logistic regression": summarize(answers, test_truth), **scores}


def _for_all_labels(
    probabilities: NDArray[np.float64], classes: NDArray[np.int64], num_labels: int
) -> NDArray[np.float32]:
    """(N, num_labels) from scikit-learn's probabilities, which lack unseen classes: those get 0.

    probabilities  (N, len(classes))
    """
    columns = np.zeros((len(probabilities), num_labels), np.float32)
    columns[:, classes] = probabilities
    return columns


def _truth(items: Sequence[Item], labels: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([labels.index(item.category) for item in items])


def _read_trial(directory: Path) -> Trial:
    confusion = json.loads((directory / "confusion_matrix.json").read_text("utf-8"))
    matrix = np.array(confusion["rows_true_columns_predicted"])
    hits, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    return Trial(
        scores=read_metrics(directory)["test"],
        f1=dict(zip(confusion["labels"], f1.tolist(), strict=True)),
        num_items=dict(zip(confusion["labels"], true.tolist(), strict=True)),
    )


def _digest_data(config: Config) -> dict[str, str]:
    """Fingerprints of training, validation and test items."""
    data = config.data
    if data.test_csv is None:
        raise UserError("an ablation compares test metrics: set data.test_csv")
    preprocessor = build_preprocessor(config)
    train_items, val_items = read_catalogues(config, preprocessor)
    labels = data.labels or labels_of(train_items)
    test_items = read_split(data.test_csv, data, labels=labels, preprocessor=preprocessor)
    splits = {"training items": train_items, "validation items": val_items, "test items": test_items}
    return fingerprint_items(data, splits)


def _is_current(directory: Path, config: Config, digests: Mapping[str, str]) -> bool:
    """Whether there is a finished and evaluated run of this config on these items."""
    try:
        fingerprint = json.loads((directory / FINGERPRINT_FILE).read_text("utf-8"))
        found = {**fingerprint, "test items": read_metrics(directory)["test_items"]}
        return found.items() >= {**fingerprint_settings(config), **digests}.items()
    except (OSError, KeyError, ValueError):
        return False
