"""A run's answers in this process: to one item, and to embedded items with one modality removed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.dataset import to_inputs
from diptych.models.classifier import Classifier, Embeddings, Inputs
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import InvalidInput

# name of the condition -> modalities that the model gets
CONDITIONS = {"both": (True, True), "image_only": (True, False), "text_only": (False, True)}
CONDITION_NAMES = {"both": "both", "image_only": "image only", "text_only": "text only"}


class Answers(NamedTuple):
    """The model's answers to all items of a split under one condition.

    probabilities  (N, C) float32, calibrated
    counted        (N,)   bool, false if the item has no modality of the condition
    """

    probabilities: NDArray[np.float32]
    counted: NDArray[np.bool_]

    def is_right(self, truth: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(N,) bool"""
        hits: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == truth
        return hits


def predict(run: Run, image: bytes, text: str) -> dict[str, float]:
    """Calibrated probabilities by label, the most likely first.

    image  one encoded image file; empty: no image
    text   empty: no text
    """
    (probabilities,) = predict_inputs(run, read_item(run, image, text)).tolist()
    return dict(sorted(zip(run.labels, probabilities, strict=True), key=lambda pair: -pair[1]))


def read_item(run: Run, image: bytes, text: str) -> Inputs:
    """One item as a batch of one. Raises like the server for a bad item."""
    (row,) = run.preprocessor.rows([(image, text.encode())])
    if isinstance(row, InvalidInput):
        raise UserError(str(row))
    return to_inputs([row])


@torch.inference_mode()
def predict_inputs(run: Run, inputs: Inputs) -> Tensor:
    """(B, C) float32, calibrated, through the whole model."""
    return run.model.eval().probabilities(inputs)


def answer_conditions(model: Classifier, embeddings: Embeddings) -> dict[str, Answers]:
    """Answers with both modalities and with each alone; a condition without items is left out."""
    answers = {}
    for name, (image, text) in CONDITIONS.items():
        shown = embeddings.keep(image=image, text=text)
        counted = (shown.image_present | shown.text_present).numpy()
        if counted.any():
            answers[name] = Answers(predict_probabilities(model, shown), counted)
    return answers


@torch.inference_mode()
def predict_probabilities(model: Classifier, embeddings: Embeddings) -> NDArray[np.float32]:
    """(N, C) float32, calibrated."""
    device = model.fusion_head.temperature.device
    probabilities: NDArray[np.float32] = model.eval().probabilities(embeddings.to(device)).cpu().numpy()
    return probabilities


@torch.inference_mode()
def classify(model: Classifier, embeddings: Embeddings) -> Tensor:
    """(N, C) float32 logits, with dropout off, not calibrated."""
    device = model.fusion_head.temperature.device
    logits: Tensor = model.eval()(embeddings.to(device))
    return logits.cpu()
