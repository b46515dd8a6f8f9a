"""The mistakes that a run is surest of, with small pictures that fit into a page."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diptych.data.items import Item
from diptych.plots import open_picture
from diptych.predict import CONDITION_NAMES, Answers
from diptych.preprocessing import PreprocessingSpec

THUMBNAIL_PX = 300  # twice what the page shows, for dense screens and print


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistake:
    """One wrong answer.

    picture  a data URI, or None
    alone    name of each condition with one modality -> what it answers
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
    """The wrong answers to what the items have, the most confident first."""
    both = answers["both"]
    confidence = both.probabilities.max(axis=1)
    wrong = np.flatnonzero(~both.is_right(truth))
    ranked = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    return [
        Mistake(
            item=items[index],
            predicted=labels[both.probabilities[index].argmax()],
            probability=float(confidence[index]),
            picture=_thumbnail(items[index], spec),
            alone={
                CONDITION_NAMES[name]: labels[answer.probabilities[index].argmax()]
                for name, answer in answers.items()
                if name != "both" and items[index].image and items[index].text
            },
        )
        for index in ranked.tolist()
    ]


def _thumbnail(item: Item, spec: PreprocessingSpec) -> str | None:
    picture = open_picture(item.read_image(), spec)
    if picture is None:
        return None
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
