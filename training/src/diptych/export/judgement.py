"""Whether answers that were computed in fewer bits, or by another runtime, are as good as the eager model's.

Pure functions of two sets of probabilities and the true labels. Both sets answer the same items, so every
figure is a paired difference, and most of the noise of a small validation set cancels.
"""

from __future__ import annotations

import dataclasses
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from diptych.evaluation.metrics import NUM_BINS

# Each bound is wrong in one of twenty cases, in one direction.
CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(CONFIDENCE)
SMALLEST = 1e-12  # probability, so that its logarithm is finite
NUM_DRAWS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How much worse the answers may be.

    accuracy_drop    share of the items
    nll_rise         nats an item, mean
    ece_rise         expected calibration error
    total_variation  mean distance of an item's probabilities, half the sum of absolute differences
    clear_agreement  the least share of labels that stay among items that the eager model decides clearly: by
                     a margin above twice `total_variation`, which a shift of that size cannot turn
    """

    accuracy_drop: float = 0.005
    nll_rise: float = 0.02
    ece_rise: float = 0.02
    total_variation: float = 0.05
    clear_agreement: float = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """One form of the model beside the eager one on real items. Figures of truth are None without labels.

    num_lost, num_gained  items that the eager model alone has right, and this form alone
    accuracy_drop         (lost - gained) / labelled items
    drop_bounds           its bounds, each with 95 % confidence: Clopper and Pearson's for the share of lost
                          among the items that changed sides, which is McNemar's test in its exact form
                          (Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014)
    expected_drop         what the changed labels cost by the eager model's own calibrated probabilities
    nll_rise, ece_rise    of the labelled items
    nll_rise_bound, expected_drop_bound  upper bounds, ece_rise_bound a lower bound, with 95 % confidence
    faults                what is beyond its limit; none: accepted
    """

    form: str
    precision: str
    num_items: int
    num_labelled: int
    label_agreement: float
    num_clear: int
    clear_agreement: float
    total_variation: float
    max_difference: float
    expected_drop: float
    expected_drop_bound: float
    eager_accuracy: float | None = None
    accuracy: float | None = None
    num_lost: int | None = None
    num_gained: int | None = None
    accuracy_drop: float | None = None
    drop_bounds: tuple[float, float] | None = None
    nll_rise: float | None = None
    nll_rise_bound: float | None = None
    ece_rise: float | None = None
    ece_rise_bound: float | None = None
    faults: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for a person."""
        verdict = "refused: " + "; ".join(self.faults) if self.faults else "accepted"
        if self.accuracy is None:
            accuracy = "no labels, so accuracy is not compared"
        else:
            accuracy = (
                f"accuracy {self.eager_accuracy:.1%} -> {self.accuracy:.1%} on {self.num_labelled:,} items "
                f"({self.num_lost} lost, {self.num_gained} gained; changed labels cost at most "
                f"{100 * self.expected_drop_bound:.2f} points by their margins)"
            )
        return (
            f"{self.form} in {self.precision}: {accuracy}, same label {self.label_agreement:.1%}, "
            f"mean shift {self.total_variation:.3f}: {verdict}"
        )


def judge(
    form: str,
    precision: str,
    eager: NDArray[np.float32],
    found: NDArray[np.float32],
    truth: NDArray[np.int64],
    limits: Limits,
) -> Judgement:
    """Compare two sets of answers to the same items.

    eager, found  (N, C) float32 probabilities
    truth         (N,) int64 label indices; -1: not known
    """
    wide = np.float64  # sums of float32 would round
    return _judge(form, precision, eager.astype(wide), found.astype(wide), truth, limits)


def _judge(
    form: str,
    precision: str,
    eager: NDArray[np.float64],
    found: NDArray[np.float64],
    truth: NDArray[np.int64],
    limits: Limits,
) -> Judgement:
    rows = np.arange(len(eager))
    before, after = eager.argmax(1), found.argmax(1)
    is_same = before == after
    largest = np.partition(eager, -2, axis=1)[:, -2:]
    is_clear = largest[:, 1] - largest[:, 0] > 2 * limits.total_variation
    cost = eager[rows, before] - eager[rows, after]
    judgement = Judgement(
        form=form,
        precision=precision,
        num_items=len(eager),
        num_labelled=int((truth >= 0).sum()),
        label_agreement=float(is_same.mean()),
        num_clear=int(is_clear.sum()),
        clear_agreement=float(is_same[is_clear].mean()) if is_clear.any() else 1.0,
        total_variation=float(np.abs(eager - found).sum(1).mean() / 2),
        max_difference=float(np.abs(eager - found).max()),
        expected_drop=float(cost.mean()),
        expected_drop_bound=_upper_bound(cost),
    )
    if judgement.num_labelled and np.isfinite(found).all():
        known = truth >= 0
        truth_figures = _compare_with_truth(eager[known], found[known], truth[known])
        judgement = dataclasses.replace(judgement, **truth_figures)
    return dataclasses.replace(judgement, faults=tuple(_faults(judgement, limits)))


def _compare_with_truth(
    eager: NDArray[np.float64], found: NDArray[np.float64], truth: NDArray[np.int64]
) -> dict[str, Any]:
    was_right, is_right = eager.argmax(1) == truth, found.argmax(1) == truth
    num_lost, num_gained = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    rows = np.arange(len(truth))
    rise = np.log(np.maximum(eager[rows, truth], SMALLEST)) - np.log(np.maximum(found[rows, truth], SMALLEST))
    return {
        "eager_accuracy": float(was_right.mean()),
        "accuracy": float(is_right.mean()),
        "num_lost": num_lost,
        "num_gained": num_gained,
        "accuracy_drop": (num_lost - num_gained) / len(truth),
        "drop_bounds": drop_bounds(num_lost, num_gained, len(truth)),
        "nll_rise": float(rise.mean()),
        "nll_rise_bound": _upper_bound(rise),
        **_ece_rise(eager, found, truth),
    }


def drop_bounds(num_lost: int, num_gained: int, num_items: int) -> tuple[float, float]:
    """Lower and upper bound of the drop in accuracy, each with 95 % confidence."""
    num_changed = num_lost + num_gained
    if not num_changed:
        return 0.0, 0.0
    share = binomtest(num_lost, num_changed).proportion_ci(2 * CONFIDENCE - 1, method="exact")
    scale = num_changed / num_items
    return (2 * share.low - 1) * scale, (2 * share.high - 1) * scale


def _faults(found: Judgement, limits: Limits) -> list[str]:
    faults = []
    if not found.max_difference <= 1:
        return ["some probabilities are no numbers"]
    if fault := _accuracy_fault(found, limits):
        faults.append(fault)
    if found.nll_rise_bound is not None and found.nll_rise_bound > limits.nll_rise:
        faults.append(f"log loss may rise by {found.nll_rise_bound:.3f} (at most {limits.nll_rise:g})")
    # Of few items, one that crosses the border of a bin moves this estimate by more than its limit.
    is_shown = found.ece_rise_bound is not None and found.ece_rise_bound > 0
    if is_shown and found.ece_rise is not None and found.ece_rise > limits.ece_rise:
        faults.append(f"calibration error rises by {found.ece_rise:.3f} (at most {limits.ece_rise:g})")
    if found.total_variation > limits.total_variation:
        faults.append(
            f"probabilities move by {found.total_variation:.3f} (at most {limits.total_variation:g})"
        )
    if found.clear_agreement < limits.clear_agreement:
        faults.append(
            f"{found.clear_agreement:.1%} of {found.num_clear} clear labels stay "
            f"(at least {limits.clear_agreement:.1%})"
        )
    return faults


def _accuracy_fault(found: Judgement, limits: Limits) -> str | None:
    """Three cases. The bounds show that the drop is within the limit. Or they show a drop, and it is above
    the limit. Or there are too few items to count: then the expected drop decides. It has far less noise,
    because a changed label counts by its margin and not as a whole item. Without labels it decides too.
    """
    limit = limits.accuracy_drop
    if found.accuracy_drop is not None and found.drop_bounds is not None:
        low, high = found.drop_bounds
        if high <= limit:
            return None
        if low > 0 and found.accuracy_drop > limit:
            return f"accuracy falls by {100 * found.accuracy_drop:.1f} points (at most {100 * limit:g})"
    if found.expected_drop_bound > limit:
        return (
            f"changed labels may cost {100 * found.expected_drop_bound:.1f} points of accuracy "
            f"(at most {100 * limit:g})"
        )
    return None


def _upper_bound(values: NDArray[np.float64]) -> float:
    """Of the mean, one-sided; the sample is large enough for a normal mean."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean() + Z * error)


def _ece_rise(
    eager: NDArray[np.float64], found: NDArray[np.float64], truth: NDArray[np.int64]
) -> dict[str, float]:
    """The bound is from a paired bootstrap over items (Efron, 1979)."""
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=NUM_DRAWS)
    rises = [_ece(found, truth, draw) - _ece(eager, truth, draw) for draw in draws]
    ones = np.ones(len(truth))
    rise = _ece(found, truth, ones) - _ece(eager, truth, ones)
    return {"ece_rise": rise, "ece_rise_bound": float(rise - Z * np.std(rises, ddof=1))}


def _ece(probabilities: NDArray[np.float64], truth: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    confidence = probabilities.max(axis=1)
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    gap = np.bincount(bins, weights * (confidence - (probabilities.argmax(axis=1) == truth)), NUM_BINS)
    return float(np.abs(gap).sum() / weights.sum())
