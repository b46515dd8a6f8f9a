"""Evaluates a run with both modalities and with each alone."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.data.catalogue import read_split
from diptych.data.embedding_cache import embed_items_once
from diptych.evaluation import metrics
from diptych.evaluation.plots import plot_confusion
from diptych.evaluation.predict import Answers, answer_conditions, classify
from diptych.evaluation.report.evaluation import Evaluation
from diptych.evaluation.report.page import REPORT_FILE, write_report
from diptych.files import write_json
from diptych.models.classifier import Classifier, Embeddings
from diptych.runs.fingerprint import fingerprint_items
from diptych.runs.run import WEIGHTS_FILE, Run, update_metrics
from diptych_serving.errors import UserError

CONFUSION_FILE = "confusion_matrix.json"


def evaluate(run: Run) -> str:
    """Write the test split's metrics, confusion matrix and report.html into the run.

    The files are written elsewhere first. A failed evaluation leaves the previous one; a killed one leaves
    none or a complete one.
    returns  scikit-learn's report, as text
    """
    weights = run.directory / WEIGHTS_FILE
    evaluated = _identify(weights)
    with _staged(run.directory) as staging:
        evaluation = answer_test_set(run)
        text, matrix = metrics.report(evaluation.answers["both"].probabilities, evaluation.truth, run.labels)
        scores = summarize_conditions(evaluation.answers, evaluation.truth)
        try:
            (staging / "classification_report.txt").write_text(text, "utf-8")
            confusion = {"labels": run.labels, "rows_true_columns_predicted": matrix.tolist()}
            write_json(staging / CONFUSION_FILE, confusion, indent=None)
            plot_confusion(matrix, run.labels, staging / "confusion_matrix.png")
            write_report(evaluation, scores, staging / REPORT_FILE)
        except OSError as error:
            raise _cannot_write(run.directory, error) from error
        if _identify(weights) != evaluated:
            raise UserError(f"{run.directory}: was trained again while it was evaluated; evaluate it again")
        _replace_evaluation(evaluation, scores, staging)
    return text


@contextlib.contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A temporary folder inside a run. Raises UserError if nothing can be written."""
    try:
        staging = tempfile.TemporaryDirectory(dir=directory, prefix=".evaluation-")
    except OSError as error:
        raise _cannot_write(directory, error) from error
    with staging:
        yield Path(staging.name)


def _replace_evaluation(evaluation: Evaluation, scores: dict[str, dict[str, Any]], staging: Path) -> None:
    """The old one is removed first, so that the two are never mixed."""
    run = evaluation.run
    staged = sorted(staging.iterdir())
    try:
        update_metrics(run.directory, test=None, test_csv=None, test_items=None)
        for path in staged:
            (run.directory / path.name).unlink(missing_ok=True)
        for path in staged:
            path.rename(run.directory / path.name)
        table, data = str(run.config.data.test_csv), run.config.data
        digests = fingerprint_items(data, {"test items": evaluation.items})
        update_metrics(run.directory, test=scores, test_csv=table, test_items=digests["test items"])
    except OSError as error:
        raise _cannot_write(run.directory, error) from error


def _identify(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _cannot_write(directory: Path, error: OSError) -> UserError:
    return UserError(f"{directory}: cannot write the evaluation: {error.strerror or error}")


def answer_test_set(run: Run) -> Evaluation:
    """All answers of the model to the test items."""
    data = run.config.data
    if data.test_csv is None:
        raise UserError(f"{run.directory}: has no data.test_csv; name a table with --set data.test_csv=FILE")
    items = read_split(data.test_csv, data, labels=run.labels, preprocessor=run.preprocessor)
    num_workers = run.config.train.num_workers
    embeddings = embed_items_once(
        run.model, items, run.preprocessor, title="test items", num_workers=num_workers
    )
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
    """Metrics for both modalities and each alone. An item counts if it has a modality of the condition."""
    return summarize_conditions(answer_conditions(model, embeddings), truth)


def summarize_conditions(answers: dict[str, Answers], truth: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """Metrics by condition, over the items that count under it."""
    return {
        name: metrics.summarize(probabilities[counted], truth[counted])
        for name, (probabilities, counted) in answers.items()
    }
