"""A run's most confident mistakes, with their images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.data.items import Item
from diptych.evaluation.predict import CONDITION_NAMES, Answers
from diptych.evaluation.report.thumbnails import thumbnail
from diptych_serving.preprocessing import PreprocessingSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistake:
    """One wrong answer.

    picture  the image as a data URI, or None
    alone    condition with one modality -> its answer
    """

    item: Item
    predicted: str
    probability: float
    picture: str | None
    alone: dict[str, str]


def find_mistakes(
    items: Sequence[Item],
    truth: NDArray[np.int64],
    answers: Mapping[str, Answers],
    labels: Sequence[str],
    spec: PreprocessingSpec,
    limit: int = 12,
) -> list[Mistake]:
    """The wrong answers to whole items, the most confident first."""
    both = answers["both"]
    confidence = both.probabilities.max(axis=1)
    wrong = np.flatnonzero(~both.is_right(truth))
    ranked = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    return [
        Mistake(
            item=items[index],
            predicted=labels[both.probabilities[index].argmax()],
            probability=float(confidence[index]),
            picture=thumbnail(items[index], spec),
            alone={
                CONDITION_NAMES[name]: labels[answer.probabilities[index].argmax()]
                for name, answer in answers.items()
                if name != "both" and items[index].image and items[index].text
            },
        )
        for index in ranked.tolist()
    ]
