"""One model's answers to a list of items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

REFUSED = "(refused)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models that are compared.

    name           as shown to the reader: a run's directory, or "version 2"
    probabilities  (N, C) float32, in the order of `labels`; rows of NaN for refused items
    refusals       index of an item -> why
    """

    name: str
    labels: Sequence[str]
    probabilities: NDArray[np.float32]
    refusals: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @cached_property
    def answers(self) -> list[str]:
        """N labels; REFUSED if there is no answer."""
        best = np.nan_to_num(self.probabilities, nan=-1).argmax(axis=1).tolist()
        return [
            REFUSED if index in self.refusals else self.labels[column] for index, column in enumerate(best)
        ]

    def probability(self, index: int, label: str) -> float:
        """Of one item and label; 0 if this model does not know the label, or refused."""
        if label not in self.labels or index in self.refusals:
            return 0.0
        return float(self.probabilities[index, list(self.labels).index(label)])
