"""What each part is worth: the same config without it, over several seeds, beside simple baselines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from diptych.config import Config
from diptych.data.catalogue import read_split
from diptych.data.items import Item
from diptych.doubtful import linear_probe, probe_features
from diptych.embedding_cache import embed_items_once
from diptych.errors import UserError
from diptych.evaluate import evaluate
from diptych.metrics import summarize
from diptych.models.fusion import FUSIONS
from diptych.run import METRICS_FILE, Run
from diptych.train import train

CONDITIONS = ("both", "image_only", "text_only")


def ablate(config: Config, out: Path, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Train every variant with every seed; what is there already is not trained again.

    returns  name of the variant -> a seed's test metrics by condition, one each
    """
    if config.data.test_csv is None:
        raise UserError("an ablation compares test metrics: set data.test_csv")
    results: dict[str, list[dict[str, Any]]] = {}
    for name, variant in variants(config):
        for seed in seeds:
            directory = out / f"{name.replace(' ', '_')}-{seed}"
            if not _is_evaluated(directory):
                evaluate(train(dataclasses.replace(variant, seed=seed), directory))
            metrics = json.loads((directory / METRICS_FILE).read_text("utf-8"))
            results.setdefault(name, []).append(metrics["test"])
    (out / "ablation.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    return results


def variants(config: Config) -> Iterator[tuple[str, Config]]:
    """Each fusion, one modality alone, and the config without modality dropout."""
    for kind in FUSIONS:
        yield kind, dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, kind=kind))
    for name, drop_image, drop_text in (
        ("picture alone", 0.0, 1.0),
        ("words alone", 1.0, 0.0),
        ("no modality dropout", 0.0, 0.0),
    ):
        yield (
            name,
            dataclasses.replace(
                config,
                train=dataclasses.replace(config.train, drop_image=drop_image, drop_text=drop_text),
            ),
        )


def measure_baselines(run: Run) -> dict[str, dict[str, Any]]:
    """TF-IDF with logistic regression on the words, and a linear probe on the run's own embeddings."""
    data = run.config.data
    if data.test_csv is None:
        raise UserError(f"{run.directory}: has no data.test_csv")
    train_items, test_items = (
        read_split(table, data, labels=run.labels, spec=run.preprocessor.spec)
        for table in (data.train_csv, data.test_csv)
    )
    train_truth, test_truth = (_truth(items, run.labels) for items in (train_items, test_items))
    tf_idf = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=500)
    )
    tf_idf.fit([item.text for item in train_items], train_truth)
    probe: Any = linear_probe()
    train_features, test_features = (
        probe_features(embed_items_once(run.model, items, run.preprocessor, title=f"{title} items"))
        for items, title in ((train_items, "training"), (test_items, "test"))
    )
    probe.fit(train_features, train_truth)
    return {
        "TF-IDF, logistic regression": summarize(
            tf_idf.predict_proba([item.text for item in test_items]), test_truth
        ),
        "linear probe": summarize(probe.predict_proba(test_features), test_truth),
    }


def draw_table(results: dict[str, list[dict[str, Any]]], baselines: dict[str, dict[str, Any]]) -> Table:
    """Mean and spread over seeds: accuracy, macro-F1 in brackets."""
    title = "Test accuracy (macro-F1), mean ± standard deviation over seeds"
    table = Table(title=title, title_justify="left")
    for column in ("variant", "both", "picture only", "words only"):
        table.add_column(column, no_wrap=True)
    for name, seeds in results.items():
        table.add_row(name, *(_cell([seed[condition] for seed in seeds]) for condition in CONDITIONS))
    for name, scores in baselines.items():
        table.add_row(name, _cell([scores]), "", "")
    return table


def _cell(scores: Sequence[dict[str, Any]]) -> str:
    accuracy, macro_f1 = ([score[key] for score in scores] for key in ("accuracy", "macro_f1"))
    spread = f" ± {stdev(accuracy):.3f}" if len(accuracy) > 1 else ""
    return f"{mean(accuracy):.3f}{spread} ({mean(macro_f1):.3f})"


def _truth(items: Sequence[Item], labels: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([labels.index(item.category) for item in items])


def _is_evaluated(directory: Path) -> bool:
    path = directory / METRICS_FILE
    return path.is_file() and "test" in json.loads(path.read_text("utf-8"))
