"""Writes a comparison as one self-contained HTML page."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diptych.analysis.comparison.result import Comparison, Side
from diptych.data.items import Item
from diptych.evaluation.report import figures
from diptych.evaluation.report.templates import render
from diptych.evaluation.report.thumbnails import thumbnail
from diptych_serving.preprocessing import InvalidInput, PreprocessingSpec

CARDS_AT_MOST = 24  # of each kind; nobody reads a page of thousands
MOVES_AT_MOST = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """One disagreement: the item, and each side's answer with its probability.

    picture  the image as a data URI, or None
    """

    item: Item
    picture: str | None
    old: str
    old_probability: float
    new: str
    new_probability: float


def write_comparison(
    comparison: Comparison, path: Path, spec: PreprocessingSpec, *, title: str, notes: Mapping[str, str]
) -> None:
    """Write the page.

    spec   preprocessing for the images
    notes  terms and values at the top of the page
    """
    old, new = comparison.old, comparison.new
    kinds = {"lost": comparison.lost, "won": comparison.won, "undecided": comparison.undecided}
    page = render(
        "comparison.html.jinja",
        title=title,
        notes=notes,
        old=old,
        new=new,
        num_items=len(comparison.items),
        num_same=int(comparison.is_same.sum()),
        num_known=int(comparison.has_truth.sum()),
        accuracies=[comparison.accuracy(side) for side in (old, new)],
        chance=comparison.chance,
        counts={name: len(indices) for name, indices in kinds.items()},
        cards={name: _cards(comparison, indices, spec) for name, indices in kinds.items()},
        moves=comparison.moves[:MOVES_AT_MOST],
        categories=comparison.categories,
        figure=_draw(comparison),
        gone=[label for label in old.labels if label not in new.labels],
        added=[label for label in new.labels if label not in old.labels],
        has_other_order=list(old.labels) != list(new.labels),
        refused=_refusals(comparison),
        date=datetime.date.today().isoformat(),
    )
    path.write_text(page, "utf-8")


def _cards(comparison: Comparison, indices: Sequence[int], spec: PreprocessingSpec) -> list[Card]:
    old, new = comparison.old, comparison.new
    return [
        Card(
            item=comparison.items[index],
            picture=_picture(comparison.items[index], spec),
            old=old.answers[index],
            old_probability=old.probability(index, old.answers[index]),
            new=new.answers[index],
            new_probability=new.probability(index, new.answers[index]),
        )
        for index in indices[:CARDS_AT_MOST]
    ]


def _picture(item: Item, spec: PreprocessingSpec) -> str | None:
    try:
        return thumbnail(item, spec)
    except InvalidInput:  # at least one side refused it
        return None


def _draw(comparison: Comparison) -> str | None:
    """The probability of the truth on each side; None without known categories."""
    known, sides = np.flatnonzero(comparison.has_truth).tolist(), (comparison.old, comparison.new)
    if not known:
        return None
    truths = [
        [side.probability(index, comparison.items[index].category) for index in known] for side in sides
    ]
    is_right = [comparison.is_right(side)[known] for side in sides]
    names = (comparison.old.name, comparison.new.name)
    figure = figures.draw_truths(names, np.array(truths, np.float32), np.array(is_right))
    return figures.to_svg(figure, "truths", "Probability of the truth on either side")


def _refusals(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(place of the item, the side that refused it, the reason)"""

    def of(side: Side) -> list[tuple[int, str, str]]:
        return [(index, side.name, reason) for index, reason in side.refusals.items()]

    found = sorted(of(comparison.old) + of(comparison.new), key=lambda refusal: refusal[0])
    return [(comparison.items[index].place, name, reason) for index, name, reason in found][:CARDS_AT_MOST]
