"""Standard errors, calibration, abstaining and missing modalities, as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from diptych.evaluation import metrics

SHARES = [step / 10 for step in range(11)]


def draw_answers(num_items: int, num_labels: int = 4, seed: int = 0, sharpness: float = 1.0):
    """Probabilities, and labels drawn from them: a model that is calibrated where sharpness is 1."""
    generator = np.random.default_rng(seed)
    truth = generator.dirichlet(np.full(num_labels, 0.5), num_items)
    labels = np.array([generator.choice(num_labels, p=row) for row in truth])
    claimed = truth**sharpness
    return (claimed / claimed.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_the_standard_error_of_an_accuracy_is_the_binomial_one() -> None:
    assert metrics.accuracy_standard_error(0.739, 260) == pytest.approx(0.0272, abs=1e-4)
    assert metrics.accuracy_standard_error(1.0, 10) == 0


def test_the_bootstrap_over_cells_is_the_bootstrap_over_items() -> None:
    probabilities, labels = draw_answers(150)
    predicted = probabilities.argmax(axis=1)
    generator = np.random.default_rng(1)
    draws = generator.integers(0, len(labels), (1000, len(labels)))
    slow = np.std([f1_score(labels[draw], predicted[draw], average="macro") for draw in draws])
    _, matrix = metrics.report(probabilities, labels, list("abcd"))
    assert metrics.macro_f1_standard_error(matrix) == pytest.approx(slow, rel=0.08)


def test_bins_hold_every_item_once_and_full_confidence_belongs_to_the_last() -> None:
    bins = metrics.reliability_bins(np.array([0.5, 0.99, 1.0], np.float32), np.array([True, True, False]), 10)
    assert [each.num_items for each in bins] == [1, 2]
    assert bins[-1].high == 1.0
    assert bins[-1].accuracy == 0.5


def test_a_calibrated_model_has_the_ece_that_is_foretold_for_it() -> None:
    probabilities, labels = draw_answers(400)
    foretold = metrics.ece_if_calibrated(probabilities)
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(foretold, abs=0.02)


def test_an_overconfident_model_has_a_larger_one() -> None:
    probabilities, labels = draw_answers(400, sharpness=3.0)
    foretold = metrics.ece_if_calibrated(probabilities)
    assert metrics.expected_calibration_error(probabilities, labels) > 3 * foretold


def test_the_ece_of_a_calibrated_model_shrinks_with_the_number_of_items() -> None:
    few, many = (metrics.ece_if_calibrated(draw_answers(number)[0]) for number in (100, 5000))
    assert few > 0.03
    assert many < 0.02


def test_answering_everything_has_the_plain_accuracy_and_abstaining_raises_it() -> None:
    probabilities, labels = draw_answers(2000)
    curve = metrics.accuracy_by_coverage(probabilities, labels)
    assert curve.coverage[-1] == 1
    assert curve.accuracy[-1] == (probabilities.argmax(axis=1) == labels).mean()
    assert curve.accuracy[999] > curve.accuracy[-1] + 0.1
    assert (np.diff(curve.threshold) <= 0).all()


def test_the_ends_of_a_missing_modality_are_both_and_the_other_alone() -> None:
    generator = np.random.default_rng(0)
    is_right, without = generator.random((2, 300)) < [[0.8], [0.6]]
    has_it, has_other = generator.random((2, 300)) < [[0.9], [0.7]]
    has_it |= ~has_other
    curve = metrics.accuracy_when_missing(
        is_right, np.where(has_it, without, is_right), has_it=has_it, has_other=has_other, shares=SHARES
    )
    assert curve.shape == (11, 50)
    assert (curve[0] == is_right.mean()).all()
    assert (curve[-1] == np.where(has_it, without, is_right)[has_other].mean()).all()


def test_the_same_seed_takes_the_same_items() -> None:
    is_right, without = np.random.default_rng(0).random((2, 50)) < 0.5
    everywhere = np.ones(50, bool)
    first, again = (
        metrics.accuracy_when_missing(
            is_right, without, has_it=everywhere, has_other=everywhere, shares=[0.5]
        )
        for _ in range(2)
    )
    assert (first == again).all()
    assert first.std() > 0


def test_items_left_with_nothing_do_not_count() -> None:
    is_right = np.array([True, True, False])
    curve = metrics.accuracy_when_missing(
        is_right,
        np.zeros(3, bool),
        has_it=np.ones(3, bool),
        has_other=np.zeros(3, bool),
        shares=[0, 1],
        num_draws=2,
    )
    assert curve[0].tolist() == [2 / 3, 2 / 3]
    assert np.isnan(curve[1]).all()


def test_categories_without_items_or_answers_score_zero() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]], np.float32)
    scores = metrics.score_categories(probabilities, np.array([0, 1]), ["a", "b", "c"])
    assert [each.label for each in scores] == ["a", "b", "c"]
    assert scores[0] == ("a", 0.5, 1.0, pytest.approx(2 / 3), 1)
    assert scores[2] == ("c", 0.0, 0.0, 0.0, 0)
