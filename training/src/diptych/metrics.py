"""Numbers about predictions: pure functions of probabilities and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score


def summarize(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Accuracy, macro-F1 and ECE.

    probabilities  (N, C) float32
    labels         (N,)   int64
    """
    predicted = probabilities.argmax(axis=1)
    return {
        "accuracy": round(float(accuracy_score(labels, predicted)), 4),
        "macro_f1": round(float(f1_score(labels, predicted, average="macro", zero_division=0)), 4),
        "ece": round(expected_calibration_error(probabilities, labels), 4),
        "num_items": len(labels),
    }


def expected_calibration_error(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], num_bins: int = 15
) -> float:
    """Mean distance between confidence and accuracy over equal-width bins (Guo et al., 2017, eq. 3)."""
    confidence = probabilities.max(axis=1)
    is_correct = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = [
        abs(confidence[bins == index].mean() - is_correct[bins == index].mean()) * (bins == index).mean()
        for index in np.unique(bins)
    ]
    return float(np.sum(gaps))


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
