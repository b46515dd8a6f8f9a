"""The report's sections as numbers, texts and figures; the template decides their look."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from diptych.evaluation import metrics
from diptych.evaluation.calibration import at_bound
from diptych.evaluation.plots import draw_history
from diptych.evaluation.predict import CONDITION_NAMES, CONDITIONS
from diptych.evaluation.report import figures
from diptych.evaluation.report.evaluation import Evaluation
from diptych.runs.run import HISTORY_FILE, Run

MISSING_SHARES = [step / 10 for step in range(11)]
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# Above this number of categories a matrix does not fit the page; the commonest confusions are listed anyway.
MAX_MATRIX_LABELS = 24
NUM_CONFUSIONS = 8


def describe_scores(evaluation: Evaluation, test: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The headline: each condition's scores with standard errors, and the score of guessing."""
    rows = []
    for name, scores in test.items():
        probabilities, counted = evaluation.answers[name]
        truth = evaluation.truth[counted]
        matrix = metrics.report(probabilities[counted], truth, evaluation.run.labels)[1]
        rows.append(
            {
                "name": name,
                **scores,
                "accuracy_error": metrics.accuracy_standard_error(scores["accuracy"], scores["num_items"]),
                "macro_f1_error": metrics.macro_f1_standard_error(matrix),
            }
        )
    counts = np.bincount(evaluation.truth, minlength=len(evaluation.run.labels))
    commonest = evaluation.run.labels[counts.argmax()]
    return {
        "scores": rows,
        "both": rows[0],
        "commonest": commonest,
        "commonest_share": counts.max() / counts.sum(),
        "num_without": {
            "picture": int((~evaluation.has_image).sum()),
            "words": int((~evaluation.has_text).sum()),
        },
    }


def describe_categories(evaluation: Evaluation) -> dict[str, Any]:
    """Every category's scores, the best first, and the commonest confusions."""
    labels = evaluation.run.labels
    probabilities = evaluation.answers["both"].probabilities
    matrix = metrics.report(probabilities, evaluation.truth, labels)[1]
    categories = metrics.score_categories(probabilities, evaluation.truth, labels)
    wrong = matrix * (1 - np.eye(len(labels), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
    cells = [np.unravel_index(index, wrong.shape) for index in order.tolist()]
    return {
        "categories": sorted(categories, key=lambda each: (-each.f1, -each.support)),
        "confusions": [
            (labels[row], labels[column], int(wrong[row, column]), int(matrix[row].sum()))
            for row, column in cells
            if wrong[row, column]
        ],
        "matrix": matrix.tolist() if len(labels) <= MAX_MATRIX_LABELS else None,
    }


def describe_confidence(evaluation: Evaluation) -> dict[str, Any]:
    """Reliability before and after scaling, and the gain of abstaining."""
    truth, both = evaluation.truth, evaluation.answers["both"]
    temperatures = dict(zip(CONDITIONS, evaluation.run.model.fusion_head.temperature.tolist(), strict=True))
    before, after = (
        metrics.reliability_bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == truth)
        for probabilities in (evaluation.uncalibrated, both.probabilities)
    )
    ece_before, ece_after = (
        metrics.expected_calibration_error(probabilities, truth)
        for probabilities in (evaluation.uncalibrated, both.probabilities)
    )
    titles = [
        f"As trained: ECE {ece_before:.3f}",
        f"After temperature scaling, T = {temperatures['both']:.2f}: ECE {ece_after:.3f}",
    ]
    curves = {
        name: metrics.accuracy_by_coverage(probabilities[counted], truth[counted])
        for name, (probabilities, counted) in evaluation.answers.items()
    }
    last = [max(0, round(share * len(truth)) - 1) for share in COVERAGES]
    return {
        "temperatures": {
            CONDITION_NAMES[name]: (value, at_bound(value)) for name, value in temperatures.items()
        },
        "ece_before": ece_before,
        "ece_after": ece_after,
        "ece_if_calibrated": metrics.ece_if_calibrated(both.probabilities),
        "reliability": figures.to_svg(
            figures.draw_reliability(before, after, titles), "reliability", "Reliability diagrams"
        ),
        "coverage": figures.to_svg(figures.draw_coverage(curves), "coverage", "Accuracy against coverage"),
        "coverage_rows": [
            (share, curves["both"].accuracy[index], curves["both"].threshold[index])
            for share, index in zip(COVERAGES, last, strict=True)
        ],
    }


def describe_missing(evaluation: Evaluation) -> dict[str, Any] | None:
    """Accuracy as images, and as texts, go missing; None if no item has both."""
    if evaluation.answers.keys() != CONDITIONS.keys():
        return None
    is_right = {name: answer.is_right(evaluation.truth) for name, answer in evaluation.answers.items()}
    owners = {
        "text_only": (evaluation.has_image, evaluation.has_text),
        "image_only": (evaluation.has_text, evaluation.has_image),
    }
    curves = {
        left: metrics.accuracy_when_missing(
            is_right["both"], is_right[left], has_it=has_it, has_other=has_other, shares=MISSING_SHARES
        )
        for left, (has_it, has_other) in owners.items()
    }
    figure = figures.draw_missing(MISSING_SHARES, curves)
    return {
        "figure": figures.to_svg(figure, "missing", "Accuracy as images or texts go missing"),
        "rows": [
            (share, curves["text_only"][row].mean(), curves["image_only"][row].mean())
            for row, share in enumerate(MISSING_SHARES)
            if row % 2 == 0
        ],
        "num_draws": curves["text_only"].shape[1],
    }


def draw_curves(run: Run, saved: Mapping[str, Any]) -> Markup | None:
    """Loss and scores over the epochs; None if the run has no history."""
    path = run.directory / HISTORY_FILE
    history = json.loads(path.read_text("utf-8")) if path.is_file() else []
    if not history:
        return None
    figure = draw_history(history, saved.get("train", {}).get("best_epoch"))
    return figures.to_svg(figure, "curves", "Loss and accuracy over the epochs")


def describe_cost(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The training section of metrics.json, as terms and values: peak_memory_mb -> peak memory, MB."""
    rows: list[tuple[str, str]] = []
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += describe_cost(value, f"{name} ")
        elif isinstance(value, bool | str) or not isinstance(value, int | float):
            rows.append((name.replace("_", " "), str(value)))
        else:
            number = f"{value:,}" if isinstance(value, int) or value >= 1000 else f"{value:.4g}"
            rows.append(_with_unit(name, number))
    return rows


def _with_unit(name: str, number: str) -> tuple[str, str]:
    words = name.replace("num_", "").replace("_", " ")
    if words.endswith(" mb"):
        return words.removesuffix(" mb"), f"{number} MB"
    if words.endswith("seconds"):
        return words.removesuffix("seconds") + "time", f"{number} s"
    return words, number
