"""Finds doubtful labels: items whose category is unlikely for a model that was not trained on them."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diptych.config.loader import Config
from diptych.data.catalogue import labels_of
from diptych.data.embedding_cache import embed_items_once
from diptych.data.folds import plan_folds, predict_out_of_fold
from diptych.data.items import Item
from diptych.evaluation.drawn_text import fit
from diptych.evaluation.plots import open_picture
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Embeddings
from diptych.train.train import build_preprocessor, read_catalogues
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec
from diptych_serving.progress import warn

NUM_FOLDS = 5
# Strength of the probe's regularisation; 0.01 was best of 0.001, 0.003 and 0.01 on openclipart.
INVERSE_REGULARIZATION = 0.01
COLUMN_INCHES = 2.6
CLEANLAB_IS_MISSING = "cleanlab, which finds doubtful labels, is not installed: pip install 'diptych[doubt]'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suspect:
    """An item with its label and the model's label."""

    item: Item
    suggested: str
    own_probability: float
    suggested_probability: float


def has_cleanlab() -> bool:
    """Whether the extra `doubt` is installed."""
    return importlib.util.find_spec("cleanlab") is not None


def find_suspects(config: Config) -> list[Suspect]:
    """The training and validation items that confident learning finds mislabelled, the worst first.

    A linear probe on the pretrained backbones answers each item, trained on the other folds. Raises
    UserError where cleanlab is missing.
    """
    if not has_cleanlab():
        raise UserError(CLEANLAB_IS_MISSING)
    torch.manual_seed(config.seed)  # backbones may be random
    preprocessor = build_preprocessor(config)
    train_items, val_items = read_catalogues(config, preprocessor)
    items, num_folds = _judgeable([*train_items, *val_items])
    labels = labels_of(items)
    truth = np.array([labels.index(item.category) for item in items])
    each_by_itself = np.arange(len(items))  # a near-duplicate with another label is evidence
    folds = plan_folds(truth, each_by_itself, num_folds, seed=config.seed, chooses_epoch=False)
    model = build_classifier(config.image, config.text, config.fusion, len(labels))
    num_workers = config.train.num_workers
    embeddings = embed_items_once(model, items, preprocessor, title="all items", num_workers=num_workers)
    features = probe_features(embeddings)
    probabilities = predict_out_of_fold(linear_probe(), features, truth, folds, len(labels))
    return rank_suspects(items, labels, truth, probabilities)


def rank_suspects(
    items: Sequence[Item],
    labels: Sequence[str],
    truth: NDArray[np.int64],
    probabilities: NDArray[np.floating[Any]],
) -> list[Suspect]:
    """The items whose label is probably wrong, the worst first (Northcutt et al., 2021).

    truth          (N,)   int64
    probabilities  (N, C) of models that were trained without the item; 0 for labels that they never saw,
                   which they cannot judge
    """
    from cleanlab.filter import find_label_issues

    judged = np.flatnonzero(probabilities[np.arange(len(truth)), truth] > 0)
    found, compact = np.unique(truth[judged], return_inverse=True)
    if len(found) < 2:
        return []
    kept = probabilities[np.ix_(judged, found)]
    kept = kept / kept.sum(axis=1, keepdims=True)
    # One process: cleanlab forks by default, which can hang with torch's threads.
    worst_first = find_label_issues(compact, kept, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [
        _suspect(items[index], labels, int(truth[index]), probabilities[index])
        for index in judged[worst_first]
        if probabilities[index].argmax() != truth[index]
    ]


def _judgeable(items: Sequence[Item]) -> tuple[list[Item], int]:
    """The items whose category has other items, and the number of folds that this allows."""
    counts = Counter(item.category for item in items)
    if alone := sorted(category for category, count in counts.items() if count == 1):
        warn(f"not judged, because each is the only item of its category: {', '.join(alone)}")
    judged = [item for item in items if counts[item.category] > 1]
    counts = Counter(item.category for item in judged)
    if len(counts) < 2:
        raise UserError(f"found {len(counts)} categories with two items or more; expected: at least two")
    return judged, min(NUM_FOLDS, *counts.values())


def linear_probe() -> object:
    """Logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=500))


def probe_features(embeddings: Embeddings) -> NDArray[np.float32]:
    """(N, D_image + D_text) float32: both embeddings side by side, of unit length; zeros if absent."""
    parts = [
        np.where(present[:, None], part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6), 0)
        for part, present in (
            (embeddings.image.numpy(), embeddings.image_present.numpy()),
            (embeddings.text.numpy(), embeddings.text_present.numpy()),
        )
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def write_suspects(suspects: Sequence[Suspect], path: Path) -> None:
    """Write all of them as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("place", "description", "category", "probability", "suggested", "its_probability"))
        for suspect in suspects:
            item = suspect.item
            probabilities = (f"{suspect.own_probability:.4f}", f"{suspect.suggested_probability:.4f}")
            writer.writerow(
                (item.place, item.text, item.category, probabilities[0], suspect.suggested, probabilities[1])
            )


def plot_suspects(
    suspects: Sequence[Suspect], spec: PreprocessingSpec, path: Path, num_columns: int = 5
) -> None:
    """A sheet of images, each with its text, its label and the suggested label."""
    num_rows = max(1, -(-len(suspects) // num_columns))
    figure = Figure(figsize=(COLUMN_INCHES * num_columns, 3.1 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, suspect in zip(grid.flat, suspects, strict=False):
        picture = open_picture(suspect.item.read_image(), spec)
        if picture is not None:
            axes.imshow(picture)
        # One line each, so that long labels do not overlap and right-to-left labels do not change the order.
        item, suggested = suspect.item, suspect.suggested
        lines = (item.text or "no text", f"labelled {item.category}", f"rather {suggested}")
        axes.set_title("\n".join(fit(line, COLUMN_INCHES - 0.2, size=9) for line in lines), fontsize=9)
    figure.savefig(path)


def _suspect(
    item: Item, labels: Sequence[str], label: int, probabilities: NDArray[np.floating[Any]]
) -> Suspect:
    suggested = int(probabilities.argmax())
    return Suspect(
        item=item,
        suggested=labels[suggested],
        own_probability=float(probabilities[label]),
        suggested_probability=float(probabilities[suggested]),
    )
