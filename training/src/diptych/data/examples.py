"""Validation items that a run keeps, so that it can be exported without its training data.

An image is kept as preprocessed: a square PNG of about 50 kB.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diptych.data.items import Item
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import InvalidInput, Preprocessor

EXAMPLES_FILE = "examples.parquet"
MAX_EXAMPLES = 256
# Lossless ones first.
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "JPEG": {"quality": 95},
}
MADE_UP_TEXT = "a text that stands for those of a table without any"


class Example(NamedTuple):
    """An image file and a text; empty if the item has none. The category is empty if it is not known."""

    image: bytes
    text: str
    category: str = ""


def choose_examples(items: Sequence[Item], preprocessor: Preprocessor) -> list[Example]:
    """At most MAX_EXAMPLES, spread over the whole table. Raises UserError if one cannot be used."""
    step = max(1, len(items) / MAX_EXAMPLES)
    chosen = [items[int(number * step)] for number in range(min(len(items), MAX_EXAMPLES))]
    return [Example(_square(item, preprocessor), item.text, item.category) for item in chosen]


def write_examples(examples: Sequence[Example], directory: Path) -> None:
    """As a table like `data.val_csv`."""
    table = pa.table(
        {
            "image": pa.array([example.image or None for example in examples], pa.binary()),
            "description": [example.text for example in examples],
            "category": [example.category for example in examples],
        }
    )
    pq.write_table(table, directory / EXAMPLES_FILE)


def read_examples(directory: Path) -> list[Example] | None:
    """None if a run keeps none."""
    path = directory / EXAMPLES_FILE
    if not path.is_file():
        return None
    try:
        columns = pq.read_table(path).to_pydict()
        texts = columns["description"]
        categories = columns.get("category", [""] * len(texts))  # runs from before had none
        return list(itertools.starmap(_example, zip(columns["image"], texts, categories, strict=True)))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(
            f"{path}: damaged ({str(error).splitlines()[0]}). Delete it, and name the validation table: "
            "diptych export RUN --set data.val_csv=FILE"
        ) from None


def as_served(examples: Sequence[Example], preprocessor: Preprocessor) -> list[Example]:
    """Those that a server with these limits accepts, images in the first accepted format of FORMATS."""
    taken = (
        next((form for form in _forms(example) if _is_taken(form, preprocessor)), None)
        for example in examples
    )
    return [example for example in taken if example is not None]


def complete_pairs(examples: Sequence[Example], size_px: int, limit: int) -> list[tuple[bytes, str]]:
    """Image and text of examples with both. If no item has both, images and texts of different items are
    combined; if none has an image, or none a text, one is generated.
    """
    complete = [(example.image, example.text) for example in examples if example.image and example.text]
    if not complete:
        images = [example.image for example in examples if example.image] or [_made_up_image(size_px)]
        texts = [example.text for example in examples if example.text] or [MADE_UP_TEXT]
        count = max(len(images), len(texts))
        complete = list(itertools.islice(zip(itertools.cycle(images), itertools.cycle(texts)), count))
    return complete[:limit]


def _example(image: bytes | None, text: str, category: str) -> Example:
    return Example(image or b"", text, category)


def _square(item: Item, preprocessor: Preprocessor) -> bytes:
    try:
        pixels = preprocessor.pixels(item.read_image())
    except InvalidInput as error:
        raise UserError(f"{item.place}: {error}") from None
    return b"" if pixels is None else _encode(Image.fromarray(pixels.transpose(1, 2, 0)), "PNG")


def _encode(image: Image.Image, name: str) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, name, **FORMATS[name])
    return file.getvalue()


def _forms(example: Example) -> Iterator[Example]:
    """The example itself, then its image in each format."""
    yield example
    if example.image:
        with Image.open(io.BytesIO(example.image)) as image:
            for name in FORMATS:
                yield example._replace(image=_encode(image, name))


def _is_taken(example: Example, preprocessor: Preprocessor) -> bool:
    (row,) = preprocessor.rows([(example.image, example.text.encode())])
    return not isinstance(row, InvalidInput)


def _made_up_image(size_px: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return _encode(Image.fromarray(noise).resize((size_px, size_px)), "PNG")
