"""Fewer bits are accepted where the answers stay as good, and refused where they do not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.export.judgement import Judgement, Limits, drop_bounds, judge

NUM_LABELS = 5
Probabilities = NDArray[np.float32]


def calibrated_answers(num_items: int, seed: int = 0) -> tuple[Probabilities, NDArray[np.int64]]:
    """Probabilities, and truths drawn from them."""
    generator = np.random.default_rng(seed)
    answers = generator.dirichlet(np.full(NUM_LABELS, 0.3), num_items)
    truth = np.array([generator.choice(NUM_LABELS, p=row) for row in answers])
    return answers.astype(np.float32), truth


def with_noise(answers: Probabilities, size: float, seed: int = 1) -> Probabilities:
    """As rounding moves them: logits shifted at random."""
    noise = np.random.default_rng(seed).normal(0, size, answers.shape)
    logits = np.log(np.maximum(answers, 1e-9)) + noise
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def judged(
    eager: Probabilities, found: Probabilities, truth: NDArray[np.int64], limits: Limits | None = None
) -> Judgement:
    return judge("TorchScript", "bf16", eager, found, truth, limits or Limits())


@pytest.mark.parametrize("num_items", [64, 256, 2000])
@pytest.mark.parametrize("seed", range(5))
def test_rounding_that_turns_near_ties_alone_is_accepted(num_items: int, seed: int) -> None:
    eager, truth = calibrated_answers(num_items, seed)
    found = with_noise(eager, 0.03, seed + 1)
    result = judged(eager, found, truth)
    assert result.faults == ()
    assert result.label_agreement < 1 or num_items < 2000


@pytest.mark.parametrize("num_items", [64, 256, 2000])
@pytest.mark.parametrize("seed", range(5))
def test_answers_that_lose_accuracy_are_refused(num_items: int, seed: int) -> None:
    eager, truth = calibrated_answers(num_items, seed)
    found = eager.copy()
    wrong = np.random.default_rng(seed).random(num_items) < 0.1
    found[wrong] = np.roll(found[wrong], 1, axis=1)
    assert judged(eager, found, truth).faults


def test_a_larger_drop_may_be_allowed_by_name() -> None:
    """Of 4,000 items 60 near ties are lost, which is 1.5 points: more than 0.5, less than 3."""
    eager = np.tile(np.array([0.51, 0.49], np.float32), (4000, 1))
    truth = np.zeros(4000, np.int64)
    found = eager.copy()
    found[:60] = found[:60, ::-1]
    assert judged(eager, found, truth).faults == ("accuracy falls by 1.5 points (at most 0.5)",)
    assert judged(eager, found, truth, Limits(accuracy_drop=0.03)).faults == ()


def test_of_few_items_the_margins_of_changed_labels_decide() -> None:
    """Two items of 100 are lost. Counting cannot tell chance from a drop. Near ties cost nothing, clear ones
    do."""
    truth = np.zeros(100, np.int64)
    near = np.tile(np.array([0.505, 0.495], np.float32), (100, 1))
    found = near.copy()
    found[:2] = found[:2, ::-1]
    result = judged(near, found, truth)
    assert result.drop_bounds is not None
    assert result.drop_bounds[0] < 0 < Limits().accuracy_drop < result.drop_bounds[1]
    assert result.faults == ()

    clear = np.tile(np.array([0.8, 0.2], np.float32), (100, 1))
    found = clear.copy()
    found[:2] = found[:2, ::-1]
    assert any("changed labels may cost" in fault for fault in judged(clear, found, truth).faults)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda answers: answers**4, "probabilities move by"),
        (lambda answers: answers**4, "calibration error rises by"),
        (lambda answers: np.where(answers < 0.2, 1e-9, answers), "log loss may rise by"),
        (lambda answers: answers * np.nan, "some probabilities are no numbers"),
    ],
)
def test_labels_that_stay_do_not_excuse_worse_probabilities(change, fault: str) -> None:
    eager, truth = calibrated_answers(1000)
    changed = change(eager.astype(np.float64))
    found = (changed / changed.sum(axis=1, keepdims=True)).astype(np.float32)
    assert any(found.startswith(fault) for found in judged(eager, found, truth).faults)


def test_without_labels_the_shift_of_the_probabilities_decides() -> None:
    eager, truth = calibrated_answers(500)
    unknown = np.full_like(truth, -1)
    accepted = judged(eager, with_noise(eager, 0.03), unknown)
    assert accepted.faults == ()
    assert "no labels, so accuracy is not compared" in str(accepted)
    assert accepted.accuracy_drop is None
    assert judged(eager, np.roll(eager, 1, axis=1), unknown).faults


def test_the_bounds_of_a_drop_are_those_of_the_exact_test() -> None:
    assert drop_bounds(0, 0, 500) == (0.0, 0.0)
    low, high = drop_bounds(5, 0, 500)
    assert low == pytest.approx((2 * 0.05 ** (1 / 5) - 1) * 0.01)  # Clopper and Pearson, all of five
    assert high == pytest.approx(0.01)
    assert drop_bounds(0, 5, 500) == pytest.approx((-high, -low))


def test_the_line_for_a_person_says_what_was_lost_and_why_it_is_refused() -> None:
    eager = np.tile(np.array([0.9, 0.1], np.float32), (200, 1))
    found = eager.copy()
    found[:10] = found[:10, ::-1]
    result = judged(eager, found, np.zeros(200, np.int64))
    line = str(dataclasses.replace(result, faults=result.faults[:1]))
    assert line == (
        "TorchScript in bf16: accuracy 100.0% -> 95.0% on 200 items (10 lost, 0 gained; changed labels cost "
        "at most 6.03 points by their margins), same label 95.0%, mean shift 0.040: refused: "
        "accuracy falls by 5.0 points (at most 0.5)"
    )
