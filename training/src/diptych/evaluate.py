"""How good a run is: with both modalities, and with each alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych import metrics
from diptych.data.catalogue import read_catalogue
from diptych.embedding_cache import embed_items_once
from diptych.errors import UserError
from diptych.models.classifier import Classifier, Embeddings
from diptych.plots import plot_confusion
from diptych.run import Run, update_metrics

# name of the condition -> which modalities the model is shown
CONDITIONS = {"both": (True, True), "image_only": (True, False), "text_only": (False, True)}


def evaluate(run: Run) -> str:
    """Write the test split's metrics, confusion matrix and report into the run. Returns the report."""
    if run.config.data.test_csv is None:
        raise UserError(f"{run.directory}: has no data.test_csv; train with --set data.test_csv=FILE")
    items = read_catalogue(
        run.config.data.test_csv,
        labels=run.labels,
        spec=run.preprocessor.spec,
        skip_bad_rows=run.config.data.skip_bad_rows,
    )
    embeddings = embed_items_once(run.model, items, run.preprocessor, title="test items")
    truth = np.array([run.labels.index(item.category) for item in items])
    update_metrics(run.directory, test=evaluate_conditions(run.model, embeddings, truth))
    text, matrix = metrics.report(predict_probabilities(run.model, embeddings), truth, run.labels)
    (run.directory / "classification_report.txt").write_text(text, "utf-8")
    confusion = {"labels": run.labels, "rows_true_columns_predicted": matrix.tolist()}
    (run.directory / "confusion_matrix.json").write_text(json.dumps(confusion) + "\n", "utf-8")
    plot_confusion(matrix, run.labels, run.directory / "confusion_matrix.png")
    return text


def evaluate_conditions(
    model: Classifier, embeddings: Embeddings, truth: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Metrics for both modalities and each alone. An item counts where something of it is left."""
    results = {}
    for name, (image, text) in CONDITIONS.items():
        shown = embeddings.keep(image=image, text=text)
        has_any = shown.image_present | shown.text_present
        probabilities = predict_probabilities(model, shown.rows(has_any))
        results[name] = metrics.summarize(probabilities, truth[has_any.numpy()])
    return results


def predict_probabilities(model: Classifier, embeddings: Embeddings) -> NDArray[np.float32]:
    """(N, C) float32, calibrated."""
    logits = classify(model, embeddings) / model.fusion_head.temperature
    probabilities: NDArray[np.float32] = logits.softmax(1).numpy()
    return probabilities


@torch.inference_mode()
def classify(model: Classifier, embeddings: Embeddings) -> Tensor:
    """(N, C) float32 logits, with dropout off, not calibrated."""
    return model.eval().classify_embeddings(embeddings)
