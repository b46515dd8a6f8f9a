"""Reads a table of items, CSV or Parquet, and finds every row that cannot be used.

Three independent steps: read rows (csv_table.py, parquet_table.py), check them, report the bad ones. Memory
holds the rows without their images, about half a kilobyte each.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diptych.config.sections import DataConfig
from diptych.data import categories
from diptych.data.csv_table import read_csv
from diptych.data.items import BadRow, Item, OddCell, unit_of
from diptych.data.parquet_table import read_parquet
from diptych.data.table_file import DAMAGED, is_parquet
from diptych.location import Location
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import InvalidInput, PreprocessingSpec, Preprocessor, fit_image
from diptych_serving.progress import progress_bar, warn

UNKNOWN_CATEGORY = "unknown category"
ROWS_AT_ONCE = 256  # in the pool; a queue of millions would take more memory than the rows
MAX_MIX_ITEMS = 256
MAX_LISTED = 20  # of what is only a warning


def read_split(
    table: Location, data: DataConfig, *, labels: Sequence[str] | None, preprocessor: Preprocessor
) -> list[Item]:
    """`read_catalogue` with a config's settings.

    table   one of the config's tables
    labels  the known categories: data.labels, or those of train_csv; None: any
    """
    return read_catalogue(
        table,
        labels=labels,
        labels_from="data.labels" if labels == data.labels else f"data.train_csv ({data.train_csv})",
        preprocessors=[preprocessor],
        skip_bad_rows=data.skip_bad_rows,
        check_images=data.check_images,
    )


def read_catalogue(
    table: Path | str,
    *,
    labels: Sequence[str] | None,
    preprocessors: Sequence[Preprocessor],
    labels_from: str = "",
    skip_bad_rows: bool = False,
    check_images: bool = True,
    needs_category: bool = True,
    on_warning: Callable[[str], None] = warn,
) -> list[Item]:
    """All items of a CSV or Parquet file, local or behind an fsspec URL.

    labels          the known categories; None: any
    preprocessors   of the models that will be used: a row that one of them refuses is bad
    labels_from     where the labels come from, for the report
    check_images    decode every image once
    needs_category  whether a row without a category, or a table without that column, is an error
    on_warning      receives the report on skipped bad rows, and on suspicious ones
    raises          UserError with the report, if bad rows are not skipped
    """
    table = Location.resolve(str(table))
    rows, odd_cells = [], []
    for row in read_rows(table, needs_category=needs_category):
        if isinstance(row, OddCell):
            odd_cells.append(row)
        else:
            rows.append(row)
    if odd_cells:
        on_warning(f"{table}: {_report_on_odd(odd_cells)}")
    judged = judge_rows(
        rows,
        labels,
        preprocessors,
        check_images=check_images,
        needs_category=needs_category,
        title=f"Checking {table.name}",
    )
    items = [row for row in judged if isinstance(row, Item)]
    bad_rows = [row for row in judged if isinstance(row, BadRow)]
    if bad_rows:
        report = f"{table}: {report_on(bad_rows, len(items), unit_of(table))}"
        if labels is not None and any(row.reason == UNKNOWN_CATEGORY for row in bad_rows):
            report += f"\nKnown categories: {', '.join(labels)}."
            report += f" They are those of {labels_from}." if labels_from else ""
        if not skip_bad_rows:
            raise UserError(f"{report}\nCorrect them, or leave them out with --skip-bad-rows.")
        on_warning(f"{report}\nThey are left out.")
    if not items:
        raise UserError(f"{table}: no usable row in it")
    if labels is None and (found := categories.warning_on(Counter(item.category for item in items))):
        on_warning(f"{table}: {found}")
    return items


def labels_of(items: Iterable[Item]) -> list[str]:
    """The categories of the items, sorted."""
    return sorted({item.category for item in items})


def read_rows(table: Location, *, needs_category: bool = True) -> Iterator[Item | BadRow | OddCell]:
    """The rows as they are in the file, with resolved image paths and no other check.

    needs_category  whether there must be a column of that name
    """
    read = read_parquet if is_parquet(table) else read_csv
    try:
        yield from read(table, needs_category=needs_category)
    except OSError as error:
        raise UserError(f"{table}: cannot read it: {error.strerror or error}") from None
    except DAMAGED as error:
        raise UserError(f"{table}: cannot read it, it is damaged: {error}") from None


def judge_rows(
    rows: Sequence[Item | BadRow],
    labels: Collection[str] | None,
    preprocessors: Sequence[Preprocessor],
    *,
    check_images: bool,
    needs_category: bool,
    title: str,
) -> list[Item | BadRow]:
    """The rows; each one that cannot be used becomes a BadRow."""

    spec = functools.reduce(PreprocessingSpec.stricter, [each.spec for each in preprocessors])

    def judge(row: Item | BadRow) -> Item | BadRow:
        if isinstance(row, BadRow):
            return row
        fault = _text_fault(row, spec, preprocessors)
        if row.category or needs_category:
            fault = _category_fault(row, labels) or fault
        return fault or (_image_fault(row, spec) if check_images else None) or row

    judged: list[Item | BadRow] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar(title, len(rows)) as advance:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            judged += pool.map(judge, some) if check_images else map(judge, some)
            advance(len(some))
    return judged


def _category_fault(item: Item, labels: Collection[str] | None) -> BadRow | None:
    if not item.category:
        return BadRow(line=item.line, reason="empty category")
    character = categories.control_character(item.category)
    if character is not None:
        detail = f"{item.category!r} holds U+{ord(character):04X}; accepted: {categories.ACCEPTED}"
        return BadRow(line=item.line, reason="unusable category", detail=detail)
    if labels is not None and item.category not in labels:
        like = categories.nearest(item.category, labels)
        shown = categories.show(item.category)
        detail = f"{shown}, which looks like {categories.show(like)}" if like else shown
        return BadRow(line=item.line, reason=UNKNOWN_CATEGORY, detail=detail)
    return None


def _text_fault(item: Item, spec: PreprocessingSpec, preprocessors: Sequence[Preprocessor]) -> BadRow | None:
    if item.image is None and not all(each.has_text(item.text) for each in preprocessors):
        detail = f"the tokenizer finds nothing in {item.text[:40]!a}" if item.text else ""
        return BadRow(line=item.line, reason="neither image nor text", detail=detail)
    num_bytes = len(item.text.encode())
    if num_bytes > spec.max_text_bytes:
        detail = f"{num_bytes:,} bytes, at most {spec.max_text_bytes:,}"
        return BadRow(line=item.line, reason="text too long", detail=detail)
    return None


def _image_fault(item: Item, spec: PreprocessingSpec) -> BadRow | None:
    if item.image is None:
        return None
    try:
        fit_image(item.image.read_bytes(), spec)
    except FileNotFoundError:
        return BadRow(line=item.line, reason="missing image file", detail=str(item.image))
    except InvalidInput as error:
        return BadRow(line=item.line, reason="unusable image", detail=f"{item.image}: {error}")
    except (OSError, ValueError) as error:  # a directory, no permission, a NUL in the path
        return BadRow(line=item.line, reason="unreadable image file", detail=f"{item.image}: {error}")
    return None


def report_on(bad_rows: Sequence[BadRow], num_good: int, unit: str) -> str:
    """The number of each kind, then each bad row with its line or row number."""
    counts: Counter[str] = Counter()
    for row in bad_rows:
        counts[row.reason] += row.num_rows
    num_bad = sum(counts.values())
    summary = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    lines = [f"{num_bad:,} of {num_bad + num_good:,} rows cannot be used: {summary}"]
    for row in bad_rows:
        place = f"{unit} {row.line}" if row.num_rows == 1 else f"{unit}s {row.line} to {row.last_line}"
        lines.append(f"  {place}: {row.reason}" + (f": {row.detail}" if row.detail else ""))
    return "\n".join(lines)


def _report_on_odd(cells: Sequence[OddCell]) -> str:
    lines = ["a quote may be missing, and rows may be lost in a cell that is improbably long:"]
    for cell in cells[:MAX_LISTED]:
        lines.append(
            f"  lines {cell.line} to {cell.last_line}: one row, a cell of {cell.num_chars:,} characters"
        )
    if len(cells) > MAX_LISTED:
        lines.append(f"  and {len(cells) - MAX_LISTED:,} more")
    return "\n".join(lines)


def read_mix(catalogue: Path) -> list[tuple[bytes, str]]:
    """Up to 256 items spread over a table, as (image file, text). Raises UserError if none can be used."""
    rows = [
        row
        for row in read_rows(Location.resolve(str(catalogue)), needs_category=False)
        if isinstance(row, Item)
    ]
    if not rows:
        raise UserError(f"{catalogue}: no row that can be used")
    step = max(1, len(rows) // MAX_MIX_ITEMS)
    return [(item.read_image(), item.text) for item in rows[::step][:MAX_MIX_ITEMS]]
