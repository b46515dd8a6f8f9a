"""Two models' answers to the same items, in numbers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from diptych.data.items import Item
from diptych_serving.release.answers import REFUSED, Side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """The number of a category's items that each side puts into it."""

    category: str
    num_items: int
    num_right_old: int
    num_right_new: int

    @property
    def change(self) -> float:
        """Change of the share that is right, -1 to 1."""
        return (self.num_right_new - self.num_right_old) / self.num_items


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """N items and the answers of both sides. Labels are compared by name, so their order may differ."""

    items: Sequence[Item]
    old: Side
    new: Side

    @cached_property
    def has_truth(self) -> NDArray[np.bool_]:
        """(N,) whether the item's category is known."""
        return np.array([bool(item.category) for item in self.items], dtype=bool)

    @cached_property
    def is_same(self) -> NDArray[np.bool_]:
        """(N,) whether both give the same label."""
        return np.array([old == new for old, new in zip(self.old.answers, self.new.answers, strict=True)])

    def is_right(self, side: Side) -> NDArray[np.bool_]:
        """(N,) also false if the category is unknown."""
        pairs = zip(self.items, side.answers, strict=True)
        return np.array([bool(item.category) and item.category == answer for item, answer in pairs])

    def accuracy(self, side: Side) -> float | None:
        """Over the items with a known category; None if there are none."""
        return float(self.is_right(side)[self.has_truth].mean()) if self.has_truth.any() else None

    @cached_property
    def lost(self) -> list[int]:
        """Items that only the old side has right, the largest change first."""
        return self._ranked(self.is_right(self.old) & ~self.is_right(self.new))

    @cached_property
    def won(self) -> list[int]:
        """Items that only the new side has right, the largest change first."""
        return self._ranked(self.is_right(self.new) & ~self.is_right(self.old))

    @cached_property
    def undecided(self) -> list[int]:
        """Other items with different answers, the largest change first."""
        return self._ranked(~self.is_same & ~self.is_right(self.old) & ~self.is_right(self.new))

    @property
    def chance(self) -> float | None:
        """The p-value of wins and losses if both sides are equally good: the exact McNemar test, a sign test
        on the items that only one side has right. None without such items.
        """
        decided = len(self.lost) + len(self.won)
        return float(binomtest(len(self.won), decided).pvalue) if decided else None

    @property
    def moves(self) -> list[tuple[str, str, int]]:
        """(old label, new label, number of items), the most frequent first."""
        pairs = zip(self.old.answers, self.new.answers, strict=True)
        return [(*pair, count) for pair, count in Counter(p for p in pairs if p[0] != p[1]).most_common()]

    @property
    def categories(self) -> list[Share]:
        """Every known category, the largest loss first."""
        right_old, right_new = self.is_right(self.old), self.is_right(self.new)
        shares = []
        for category in sorted({item.category for item in self.items} - {""}):
            of_it = np.array([item.category == category for item in self.items])
            shares.append(
                Share(
                    category=category,
                    num_items=int(of_it.sum()),
                    num_right_old=int((of_it & right_old).sum()),
                    num_right_new=int((of_it & right_new).sum()),
                )
            )
        return sorted(shares, key=lambda share: share.change)

    def _ranked(self, which: NDArray[np.bool_]) -> list[int]:
        return sorted(np.flatnonzero(which).tolist(), key=self._distance, reverse=True)

    def _distance(self, index: int) -> float:
        """The change in probability of the two labels, 0 to 2: most for two confident, different answers. A
        refusal on one side counts as much."""
        old, new = self.old.answers[index], self.new.answers[index]
        if REFUSED in (old, new):
            return 2.0
        of_old = self.old.probability(index, old) - self.new.probability(index, old)
        of_new = self.new.probability(index, new) - self.old.probability(index, new)
        return of_old + of_new


def summarize(comparison: Comparison) -> str:
    """The numbers in a few lines, for a terminal."""
    old, new, num_items = comparison.old, comparison.new, len(comparison.items)
    num_same = int(comparison.is_same.sum())
    lines = [f"{num_items:,} items, the same label for {num_same:,} ({num_same / num_items:.1%})"]
    for side in (old, new):
        accuracy = comparison.accuracy(side)
        right = "" if accuracy is None else f"  accuracy {accuracy:.3f}"
        refused = f"  refused {len(side.refusals):,}" if side.refusals else ""
        lines.append(f"  {side.name}{right}{refused}")
    if comparison.chance is not None:
        lines.append(
            f"right in {new.name} alone: {len(comparison.won):,}, in {old.name} alone: "
            f"{len(comparison.lost):,} (p = {comparison.chance:.2g}, exact McNemar)"
        )
    lines += [f"  {count:>5,}  {before} → {after}" for before, after, count in comparison.moves[:5]]
    return "\n".join(lines)
