"""Which real items a model of fewer bits is judged by: labelled validation items, as many as there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diptych.data.catalogue import read_catalogue
from diptych.data.examples import Example
from diptych.data.items import Item
from diptych.export.gate import Evidence
from diptych.export.judgement import Limits
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Row

# Of each table, spread over it: 0.3 GB of pixels, half a minute for each form of a small model on one core.
MAX_ITEMS = 2048


def gather_evidence(
    run: Run, examples: Sequence[Example], catalogue: Path | None, limits: Limits, *, from_table: bool
) -> Evidence:
    """The items of the validation table; where it is not at hand, those that the run keeps.

    catalogue   a table of more items
    from_table  the user names the validation table, so that it must be there
    """
    kept = ((example.image, example.text, example.category) for example in examples)
    try:
        items = list(_read(run.config.data.val_csv, run))
    except UserError:
        if from_table:
            raise
        items = list(kept)
    if catalogue is not None:
        items += _read(catalogue, run)
    rows = run.preprocessor.rows([(image, text.encode()) for image, text, _ in items])
    valid = [
        (row, run.labels.index(category) if category in run.labels else -1)
        for row, (_, _, category) in zip(rows, items, strict=True)
        if isinstance(row, Row)  # the server refuses the others
    ]
    return Evidence(
        examples=examples,
        rows=[row for row, _ in valid],
        truth=np.array([index for _, index in valid], dtype=np.int64),
        limits=limits,
    )


def _read(table: Path | str, run: Run) -> Iterator[tuple[bytes, str, str]]:
    """Image file, text and category of each item. Raises UserError."""
    items: list[Item] = read_catalogue(
        table,
        labels=None,
        preprocessors=[run.preprocessor],
        skip_bad_rows=run.config.data.skip_bad_rows,
        check_images=False,
        needs_category=False,
    )
    step = max(1, len(items) / MAX_ITEMS)
    for number in range(min(len(items), MAX_ITEMS)):
        item = items[int(number * step)]
        yield item.read_image(), item.text, item.category
