"""Splits items into train, val and test: stratified by category, groups kept together, deterministic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

SHARES: Mapping[str, float] = {"train": 0.70, "val": 0.15, "test": 0.15}


def split_groups(categories: Sequence[str], groups: Sequence[int], *, seed: int) -> list[str]:
    """The name of each item's split.

    Goes from the largest group to the smallest, and puts each into the split that lacks most of its
    categories. So long series go to train, and items of val and test are independent. scikit-learn's
    StratifiedGroupKFold would spread the series over all folds.
    """
    members: dict[int, Counter[str]] = {}
    for category, group in zip(categories, groups, strict=True):
        members.setdefault(group, Counter())[category] += 1
    totals = Counter(categories)
    lacking = {split: {name: share * totals[name] for name in totals} for split, share in SHARES.items()}

    shuffled = np.random.default_rng(seed).permutation(sorted(members)).tolist()
    split_of: dict[int, str] = {}
    for group in sorted(shuffled, key=lambda group: members[group].total(), reverse=True):
        counts = members[group]
        split = max(lacking, key=lambda split: sum(lacking[split][name] * n for name, n in counts.items()))
        split_of[group] = split
        for name, n in counts.items():
            lacking[split][name] -= n
    return [split_of[group] for group in groups]
