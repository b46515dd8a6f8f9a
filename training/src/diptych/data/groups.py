"""Groups of a table's items that are near-duplicates of one another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
from numpy.typing import NDArray

from diptych.data.image_hashes import HASH_SIDE, UnusablePicture, trim
from diptych.data.items import Item
from diptych.data.near_duplicates import group_near_duplicates
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, fit_image

HASHED_AT_PX = 512
# All pairs are compared: 20,000 items take about 10 GB.
MAX_ITEMS = 20_000


def group_items(items: Sequence[Item], spec: PreprocessingSpec, seed: int = 0) -> NDArray[np.int64]:
    """(N,) int64: the number of each item's group; items with similar image or equal text share one."""
    if len(items) > MAX_ITEMS:
        raise UserError(
            f"found {len(items):,} items; near-duplicates are searched among at most {MAX_ITEMS:,}. "
            "With that number, one validation table and one test table are precise enough"
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda item: _hash(item, spec), items))
    # An item without image gets random bits: they differ from any other's in about half of the bits.
    random = np.random.default_rng(seed).random((len(items), HASH_SIDE**2)) < 0.5
    hashes = np.array([bits if bits is not None else row for bits, row in zip(found, random, strict=True)])
    return group_near_duplicates(hashes, [item.text for item in items])


def _hash(item: Item, spec: PreprocessingSpec) -> NDArray[np.bool_] | None:
    """The perceptual hash of its image without blank margins; None if it has no image."""
    data = item.read_image()
    if not data:
        return None
    image = fit_image(data, spec, HASHED_AT_PX)
    try:
        image = trim(image)
    except UnusablePicture:  # all of it is blank
        return None
    bits: NDArray[np.bool_] = imagehash.phash(image, hash_size=HASH_SIDE).hash
    return bits.ravel()
