"""Near-duplicates are found, and stay on one side of stratified splits."""

from collections import Counter

import numpy as np

from diptych.data.near_duplicates import MAX_DISTANCE_BITS, group_near_duplicates
from diptych.data.splits import split_groups


def hashes_at(*distances_bits: int) -> np.ndarray:
    """256-bit hashes at the given distances from the first."""
    hashes = np.zeros((len(distances_bits), 256), np.bool_)
    for row, distance in zip(hashes, distances_bits, strict=True):
        row[:distance] = True
    return hashes


def test_pictures_that_look_alike_form_a_group_also_in_a_chain() -> None:
    hashes = hashes_at(0, MAX_DISTANCE_BITS, 2 * MAX_DISTANCE_BITS, 3 * MAX_DISTANCE_BITS + 1)
    first, second, third, other = group_near_duplicates(hashes, ["a", "b", "c", "d"])
    assert first == second == third != other


def test_items_in_the_same_words_form_a_group_but_not_those_without_words() -> None:
    groups = group_near_duplicates(hashes_at(0, 80, 160, 240), ["Stick man", "stick man", "", ""])
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_splits_are_stratified_and_keep_groups_whole() -> None:
    rng = np.random.default_rng(0)
    categories = ["common"] * 400 + ["rare"] * 40
    groups = [*rng.integers(0, 250, 400).tolist(), *rng.integers(250, 280, 40).tolist()]
    splits = split_groups(categories, groups, seed=0)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))
    counts = Counter(zip(categories, splits, strict=True))
    assert counts["common", "train"] == 280
    assert counts["common", "val"] == counts["common", "test"] == 60
    assert counts["rare", "train"] == 28
    assert counts["rare", "val"] == counts["rare", "test"] == 6


def test_a_seed_decides_the_split() -> None:
    categories, groups = ["a"] * 50, list(range(50))
    assert split_groups(categories, groups, seed=1) == split_groups(categories, groups, seed=1)
    assert split_groups(categories, groups, seed=1) != split_groups(categories, groups, seed=2)


def test_a_long_series_goes_to_train() -> None:
    splits = split_groups(["a"] * 100, [0] * 30 + list(range(1, 71)), seed=0)
    assert set(splits[:30]) == {"train"}
