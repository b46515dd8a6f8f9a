"""How good a run is: with both modalities, and with each alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych import metrics
from diptych.data.catalogue import read_split
from diptych.embedding_cache import embed_items_once
from diptych.errors import UserError
from diptych.models.classifier import Classifier, Embeddings
from diptych.plots import plot_confusion
from diptych.predict import Answers, answer_conditions, classify
from diptych.report.evaluation import Evaluation
from diptych.report.page import write_report
from diptych.run import Run, update_metrics


def evaluate(run: Run) -> str:
    """Write the test split's metrics, confusion matrix and report.html into the run.

    returns  scikit-learn's report, as text
    """
    evaluation = answer_test_set(run)
    scores = summarize_conditions(evaluation.answers, evaluation.truth)
    update_metrics(run.directory, test=scores)
    text, matrix = metrics.report(evaluation.answers["both"].probabilities, evaluation.truth, run.labels)
    (run.directory / "classification_report.txt").write_text(text, "utf-8")
    confusion = {"labels": run.labels, "rows_true_columns_predicted": matrix.tolist()}
    (run.directory / "confusion_matrix.json").write_text(json.dumps(confusion) + "\n", "utf-8")
    plot_confusion(matrix, run.labels, run.directory / "confusion_matrix.png")
    write_report(evaluation)
    return text


def answer_test_set(run: Run) -> Evaluation:
    """Everything that the model says to the test items."""
    data = run.config.data
    if data.test_csv is None:
        raise UserError(f"{run.directory}: has no data.test_csv; train with --set data.test_csv=FILE")
    items = read_split(data.test_csv, data, labels=run.labels, spec=run.preprocessor.spec)
    embeddings = embed_items_once(run.model, items, run.preprocessor, title="test items")
    return Evaluation(
        run=run,
        items=items,
        truth=np.array([run.labels.index(item.category) for item in items]),
        answers=answer_conditions(run.model, embeddings),
        uncalibrated=classify(run.model, embeddings).softmax(1).numpy(),
        has_image=embeddings.image_present.numpy(),
        has_text=embeddings.text_present.numpy(),
    )


def evaluate_conditions(
    model: Classifier, embeddings: Embeddings, truth: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Metrics for both modalities and each alone. An item counts where something of it is left."""
    return summarize_conditions(answer_conditions(model, embeddings), truth)


def summarize_conditions(answers: dict[str, Answers], truth: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """Metrics by condition, over the items that count under it."""
    return {
        name: metrics.summarize(probabilities[counted], truth[counted])
        for name, (probabilities, counted) in answers.items()
    }
