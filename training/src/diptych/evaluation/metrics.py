"""Numbers about predictions: pure functions of probabilities and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

NUM_BINS = 15


def summarize(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, macro-F1 and ECE.

    probabilities  (N, C) float32
    labels         (N,)   int64
    """
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": round(float(accuracy_score(labels, predicted)), 6),
        "macro_f1": round(float(f1_score(labels, predicted, average="macro", zero_division=0)), 6),
        "ece": round(expected_calibration_error(probabilities, labels), 6),
        "num_items": len(labels),
    }


# --- uncertainty of scores -------------------------------------------------------------------------------


def accuracy_standard_error(accuracy: float, num_items: int) -> float:
    """Standard error of a share of independent hits: sqrt(p (1 - p) / n)."""
    return math.sqrt(accuracy * (1 - accuracy) / num_items)


def macro_f1_standard_error(matrix: NDArray[np.int64], num_draws: int = 1000, seed: int = 0) -> float:
    """Bootstrap over items (Efron, 1979): spread of the macro-F1 of resampled test sets.

    Items in one cell of the confusion matrix are equal, so cells are drawn instead of items.

    matrix  (C, C) int64, rows true
    """
    true, predicted = matrix.nonzero()
    counts = matrix[true, predicted]
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(counts.sum(), counts / counts.sum(), size=num_draws)
    num_labels = len(matrix)
    scores = []
    for draw in draws:
        hits = np.bincount(true, draw * (true == predicted), num_labels)
        total = np.bincount(true, draw, num_labels) + np.bincount(predicted, draw, num_labels)
        occurs = total > 0  # like scikit-learn, average over labels that were drawn or predicted
        scores.append((2 * hits[occurs] / total[occurs]).mean())
    return float(np.std(scores, ddof=1))


def score_groups(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    num_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`summarize` with standard errors, for items with near-duplicates.

    The errors are a bootstrap over groups (Efron, 1979; Field and Welsh, 2007), because items of one group
    are right or wrong together. `each_group_once` weighs an item by one over the size of its group: a long
    series of similar items, which is often easy, then counts as one item.

    probabilities   (N, C) float32
    labels, groups  (N,)   int64
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(size), np.full(len(size), 1 / len(size)), size=num_draws)
    plain, once = (
        np.array([_weighted_scores(predicted, confidence, labels, draw[group] * weights) for draw in draws])
        for weights in (np.ones(len(labels)), 1 / size[group])
    )
    names = ("accuracy", "macro_f1", "ece")
    scores = _weighted_scores(predicted, confidence, labels, 1 / size[group])
    return {
        **summarize(probabilities, labels),
        **_errors(names, plain),
        "num_groups": len(size),
        "each_group_once": {
            **{name: round(score, 6) for name, score in zip(names, scores, strict=True)},
            **_errors(names, once),
        },
    }


def _weighted_scores(
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float32],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> tuple[float, float, float]:
    """Accuracy, macro-F1 and ECE; all weights 1 give those of `summarize`."""
    num_labels = int(max(predicted.max(), labels.max())) + 1
    is_right = predicted == labels
    hits = np.bincount(labels, weights * is_right, num_labels)
    total = np.bincount(labels, weights, num_labels) + np.bincount(predicted, weights, num_labels)
    occurs = total > 0
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    gap = np.bincount(bins, weights * (confidence.astype(np.float64) - is_right), NUM_BINS)
    accuracy = hits.sum() / weights.sum()
    macro_f1 = (2 * hits[occurs] / total[occurs]).mean()
    return float(accuracy), float(macro_f1), float(np.abs(gap).sum() / weights.sum())


def _errors(names: Sequence[str], draws: NDArray[np.float64]) -> dict[str, float]:
    return {
        f"{name}_error": round(float(error), 6)
        for name, error in zip(names, draws.std(axis=0, ddof=1), strict=True)
    }


# --- calibration ---------------------------------------------------------------------------------------


class Bin(NamedTuple):
    """The items with confidence in [low, high): their number, mean confidence and accuracy."""

    low: float
    high: float
    num_items: int
    confidence: float
    accuracy: float


def reliability_bins(
    confidence: NDArray[np.float32], is_right: NDArray[np.bool_], num_bins: int = NUM_BINS
) -> list[Bin]:
    """Non-empty bins of equal width, the least confident first; 1.0 belongs to the last."""
    indices = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    return [
        Bin(
            low=index / num_bins,
            high=(index + 1) / num_bins,
            num_items=int((indices == index).sum()),
            confidence=float(confidence[indices == index].mean(dtype=np.float64)),
            accuracy=float(is_right[indices == index].mean()),
        )
        for index in np.unique(indices).tolist()
    ]


def expected_calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], num_bins: int = NUM_BINS
) -> float:
    """Mean distance between confidence and accuracy over equal-width bins (Guo et al., 2017, eq. 3)."""
    is_right = probabilities.argmax(axis=1) == labels
    return _mean_gap(reliability_bins(probabilities.max(axis=1), is_right, num_bins))


def ece_if_calibrated(
    probabilities: NDArray[np.float32], num_bins: int = NUM_BINS, num_draws: int = 200, seed: int = 0
) -> float:
    """The expected ECE of a perfectly calibrated model on this number of items.

    In small bins confidence and accuracy differ by chance, so ECE never reaches zero. Truth is drawn from the
    predictions themselves (consistency resampling: Bröcker and Smith, 2007; for ECE,
    Vaicenavicius et al., 2019).
    """
    confidence = probabilities.max(axis=1)
    generator = np.random.default_rng(seed)
    draws = (generator.random(len(confidence)) < confidence for _ in range(num_draws))
    return float(np.mean([_mean_gap(reliability_bins(confidence, draw, num_bins)) for draw in draws]))


def _mean_gap(bins: Sequence[Bin]) -> float:
    num_items = sum(each.num_items for each in bins)
    return sum(abs(each.confidence - each.accuracy) * each.num_items for each in bins) / num_items


# --- abstaining, missing modalities ----------------------------------------------------------------------


class Coverage(NamedTuple):
    """The result of answering only the k most confident items, for k = 1 .. N; three (N,) arrays.

    coverage   share of answered items
    accuracy   among the answered items
    threshold  their lowest confidence
    """

    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    threshold: NDArray[np.float32]


def accuracy_by_coverage(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Coverage:
    """Selective classification by the highest probability (Geifman and El-Yaniv, 2017)."""
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    hits = (probabilities.argmax(axis=1) == labels)[order]
    return Coverage(answered / len(order), hits.cumsum() / answered, confidence[order])


def accuracy_when_missing(
    is_right: NDArray[np.bool_],
    is_right_without: NDArray[np.bool_],
    *,
    has_it: NDArray[np.bool_],
    has_other: NDArray[np.bool_],
    shares: Sequence[float],
    num_draws: int = 50,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Accuracy when a random share of the items that have a modality lose it.

    An item without any modality does not count, as in `evaluate_conditions`: share 0 is its `both`, share 1
    the other modality alone. Within a draw, larger shares include the items of smaller ones.

    is_right           (N,) bool, for the whole item
    is_right_without   (N,) bool, without the modality
    has_it, has_other  (N,) bool, whether the item has the removed modality, and the other one
    returns            (len(shares), num_draws) float64
    """
    generator = np.random.default_rng(seed)
    owners = np.flatnonzero(has_it)
    accuracy = np.full((len(shares), num_draws), np.nan)
    for draw in range(num_draws):
        order = generator.permutation(owners)
        for row, share in enumerate(shares):
            is_lost = np.zeros(len(is_right), bool)
            is_lost[order[: round(share * len(order))]] = True
            counted = ~is_lost | has_other
            if counted.any():
                accuracy[row, draw] = np.where(is_lost, is_right_without, is_right)[counted].mean()
    return accuracy


# --- category by category ------------------------------------------------------------------------------


class CategoryScores(NamedTuple):
    """One category: precision and recall are 0 if nothing was predicted or true."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def score_categories(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], names: Sequence[str]
) -> list[CategoryScores]:
    """Each category's scores, in the order of `names`."""
    columns = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=list(range(len(names))), zero_division=0
    )
    return [
        CategoryScores(name, *(column[index].item() for column in columns))
        for index, name in enumerate(names)
    ]


def report(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], names: Sequence[str]
) -> tuple[str, NDArray[np.int64]]:
    """scikit-learn's classification report as text, and the (C, C) confusion matrix, rows true."""
    predicted = probabilities.argmax(axis=1)
    indices = list(range(len(names)))
    text = classification_report(
        labels, predicted, labels=indices, target_names=list(names), digits=3, zero_division=0
    )
    return text, confusion_matrix(labels, predicted, labels=indices)
