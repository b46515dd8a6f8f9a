"""The folds of a cross-validation: pure functions of labels and groups."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from diptych_serving.errors import UserError

VALIDATION_PARTS = 8  # of the items that are not held out, one part in this number chooses the epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
    """Indices of items, (n,) int64 each.

    held_out  items that the model answers and is never trained on
    train     items that it is trained on
    val       items that choose its epoch; `held_out` if nothing is chosen, only for curves
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    held_out: NDArray[np.int64]


def plan_folds(
    truth: NDArray[np.int64], groups: NDArray[np.int64], num_folds: int, *, seed: int, chooses_epoch: bool
) -> list[Fold]:
    """Folds of about equal size and equal shares of each label; a group is never in two of them.

    truth, groups  (N,) int64
    chooses_epoch  whether validation items choose the epoch; then they are taken from the training items
    """
    folds = []
    for rest, held_out in _split(truth, groups, num_folds, seed):
        train, val = rest, held_out
        if chooses_epoch:
            kept, taken = _split(truth[rest], groups[rest], VALIDATION_PARTS, seed)[0]
            train, val = rest[kept], rest[taken]
        folds.append(Fold(train=train, val=val, held_out=held_out))
    return folds


def predict_out_of_fold(
    model: Any,
    features: Any,
    truth: NDArray[np.int64],
    folds: Sequence[Fold],
    num_labels: int,
) -> NDArray[np.float64]:
    """(N, C) float64: a scikit-learn classifier's answer to each item, fitted without the item's fold.

    A label that a fold's training items lack has probability 0 there.
    """
    probabilities = np.zeros((len(truth), num_labels))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(truth)), fold.held_out)
        seen = np.unique(truth[rest])
        if len(seen) == 1:  # which scikit-learn refuses
            probabilities[fold.held_out, seen[0]] = 1.0
            continue
        model.fit(features[rest], truth[rest])
        probabilities[np.ix_(fold.held_out, model.classes_)] = model.predict_proba(features[fold.held_out])
    return probabilities


def _split(
    truth: NDArray[np.int64], groups: NDArray[np.int64], num_parts: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    num_groups = len(np.unique(groups))
    if num_groups < max(num_parts, 2):
        raise UserError(
            f"found {num_groups} groups of near-duplicates among {len(truth)} items; "
            f"{max(num_parts, 2)} folds need at least as many groups"
        )
    # Without near-duplicates the simpler splitter keeps label shares more exactly.
    are_alone = num_groups == len(truth)
    kind = StratifiedKFold if are_alone else StratifiedGroupKFold
    splitter = kind(num_parts, shuffle=True, random_state=seed)
    if np.bincount(truth).max() < num_parts:  # too few of each label to stratify, which it refuses
        truth = np.zeros_like(truth)
    with warnings.catch_warnings():
        # A label with fewer items than folds is missing in some.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(splitter.split(truth, truth, None if are_alone else groups))
