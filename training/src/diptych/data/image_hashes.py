"""Makes a drawing of any size and mode into a small image on white."""

from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from diptych_serving.preprocessing import shrink_on_white

LONGEST_SIDE_PX = 512
MAX_PIXELS = 200_000_000  # 800 MB as RGBA; the largest drawings have 169 million, stop signs 623 million
GIANT_PIXELS = 16_000_000

HASH_SIDE = 16
FAINTEST_GREY = 248


class UnusablePicture(Exception):
    """Too large, blank or damaged."""


def is_giant(source: Path) -> bool:
    """Whether decoding it takes so much memory that it should be the only one. Reads only the header."""
    try:
        with PngImageFile(source) as image:
            return image.width * image.height > GIANT_PIXELS
    except (OSError, SyntaxError):
        return False


def shrink_file(source: Path, target: Path) -> NDArray[np.bool_]:
    """Write `source`, a PNG, as a small PNG on white to `target`.

    returns  (HASH_SIDE ** 2,) bool, its perceptual hash
    raises   UnusablePicture
    """
    try:
        # Not Image.open: its limit against decompression bombs is lower, and the same for the whole process.
        with PngImageFile(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnusablePicture(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            factor = max(1, max(image.size) // (2 * LONGEST_SIDE_PX))
            small = trim(shrink_on_white(image, (factor, factor)))
    except (OSError, SyntaxError) as error:  # Pillow's SyntaxError is a broken PNG
        raise UnusablePicture(f"damaged: {error}") from None
    small.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    small.save(target, compress_level=1)  # twice as fast as the default, files a tenth larger
    bits: NDArray[np.bool_] = imagehash.phash(small, hash_size=HASH_SIDE).hash
    return bits.ravel()


def trim(image: Image.Image) -> Image.Image:
    """Cut off the blank margins of the drawing. Raises UnusablePicture if all is blank."""
    is_drawn = image.convert("L").point(lambda value: value < FAINTEST_GREY and 255)
    box = is_drawn.getbbox()
    if box is None:
        raise UnusablePicture("blank")
    return image.crop(box)
