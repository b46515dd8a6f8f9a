"""The results of an evaluation, from which the report is made."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from diptych.data.items import Item
from diptych.evaluation.predict import Answers
from diptych.runs.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A run's answers to its N test items.

    truth         (N,)   int64
    answers       by condition; `both` always
    uncalibrated  (N, C) float32, probabilities with both modalities and without temperature
    has_image, has_text  (N,) bool
    """

    run: Run
    items: list[Item]
    truth: NDArray[np.int64]
    answers: dict[str, Answers]
    uncalibrated: NDArray[np.float32]
    has_image: NDArray[np.bool_]
    has_text: NDArray[np.bool_]
