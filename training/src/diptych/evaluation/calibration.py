"""Temperature scaling: one number for each set of modalities, so that confidence matches accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from diptych.evaluation.predict import CONDITION_NAMES, CONDITIONS, classify
from diptych.models.classifier import Classifier, Embeddings

# A validation set without a mistake would drive the temperature to zero and every answer to certainty. A
# small temperature also multiplies rounding errors.
LOG_TEMPERATURE_BOUNDS = (-1.0, 3.0)
# With fewer items the estimate is too uncertain: the condition gets the temperature of all items.
MIN_ITEMS = 20


def calibrate(model: Classifier, embeddings: Embeddings, truth: Tensor) -> list[str]:
    """Set the model's temperatures, each fitted on the held-out items of its condition.

    truth    (N,) int64
    returns  warnings for the user
    """
    head = model.fusion_head
    logits = {
        name: classify(model, embeddings.keep(image=image, text=text))
        for name, (image, text) in CONDITIONS.items()
    }
    temperatures = fit_temperatures(logits, embeddings.image_present, embeddings.text_present, truth)
    head.temperature.copy_(torch.tensor([temperatures[name] for name in CONDITIONS]))
    head.no_image.copy_(model.image_encoder.projection.absent.detach())
    head.no_text.copy_(model.text_encoder.projection.absent.detach())
    return [
        f"{CONDITION_NAMES[name]}: {note}" for name in CONDITIONS if (note := at_bound(temperatures[name]))
    ]


def fit_temperatures(
    logits: Mapping[str, Tensor], has_image: Tensor, has_text: Tensor, truth: Tensor
) -> dict[str, float]:
    """The temperature of items with both modalities, and of those with one of them, by condition.

    logits                     (N, C) float32 by condition
    has_image, has_text        (N,)   bool
    truth                      (N,)   int64
    """
    shown = {"both": has_image & has_text, "image_only": has_image, "text_only": has_text}
    for_all = fit_temperature(logits["both"], truth)
    return {
        name: fit_temperature(logits[name][rows], truth[rows]) if rows.sum() >= MIN_ITEMS else for_all
        for name, rows in shown.items()
    }


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest negative log-likelihood on held-out data (Guo et al., 2017, 4.2).

    logits  (N, C) float32
    labels  (N,)   int64
    """

    def negative_log_likelihood(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    best = minimize_scalar(negative_log_likelihood, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded")
    return math.exp(best.x)


def at_bound(temperature: float) -> str | None:
    """A warning if a temperature is at a bound; else None."""
    low, high = LOG_TEMPERATURE_BOUNDS
    where = math.log(temperature)
    if where < low + 1e-3:
        return (
            f"the temperature is at its lower bound, {temperature:.2f}: the model makes hardly any mistake "
            "on the validation items, so its confidence cannot be fitted. Its probabilities may be too low; "
            "use more validation items"
        )
    if where > high - 1e-3:
        return (
            f"the temperature is at its upper bound, {temperature:.2f}: on the validation items the model is "
            "certain and often wrong, or has learned nothing. Do not trust its probabilities"
        )
    return None
