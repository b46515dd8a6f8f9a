"""Temperature scaling: one number that makes probabilities mean what they say."""

from __future__ import annotations

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

# A validation set without a single mistake would drive the temperature to zero and every answer to certainty,
# on no evidence; and what multiplies logits multiplies rounding errors.
LOG_TEMPERATURE_BOUNDS = (-1.0, 3.0)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest negative log-likelihood on held-out data (Guo et al., 2017, 4.2).

    logits  (N, C) float32
    labels  (N,)   int64
    """

    def negative_log_likelihood(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / float(torch.tensor(log_temperature).exp()), labels).item()

    best = minimize_scalar(negative_log_likelihood, bounds=LOG_TEMPERATURE_BOUNDS, method="bounded")
    return float(torch.tensor(best.x).exp())
