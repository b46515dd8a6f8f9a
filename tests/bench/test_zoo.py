"""The shorter version of `python -m bench.zoo`; the text families have tests of their own."""

from __future__ import annotations

import pytest

from bench.zoo import QUICK_IMAGES, QUICK_TEXTS, image_rows, text_rows
from bench.zoo_names import IMAGES, TEXTS

IMAGE_ROWS = {row.name: row for row in IMAGES}
TEXT_ROWS = {row.name: row for row in TEXTS}


@pytest.mark.parametrize("name", QUICK_IMAGES)
def test_an_image_backbone_trains_and_exports_as_the_table_says(name: str) -> None:
    ((*_, sizes, result),) = image_rows([IMAGE_ROWS[name]])
    assert sizes.count(" px: ") == 2
    assert result.startswith("works")


@pytest.mark.parametrize(
    ("name", "expected"), list(zip(QUICK_TEXTS, ("works", "works", "refused"), strict=True))
)
def test_a_text_backbone_trains_and_exports_as_the_table_says(name: str, expected: str) -> None:
    ((*_, result),) = text_rows([TEXT_ROWS[name]])
    assert result.startswith(expected)
