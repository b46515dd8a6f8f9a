"""Reads a CSV with image_path, description and category, and finds every row that cannot be used.

Three steps that know nothing of one another: reading rows, judging rows, reporting the bad ones.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diptych.errors import UserError
from diptych.preprocessing import InvalidInput, PreprocessingSpec, decode_image
from diptych.progress import console, wait_for

COLUMNS = ("image_path", "description", "category")
UNKNOWN_CATEGORY = "unknown category"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One row that can be used. A modality that it lacks is None or empty; it never lacks both."""

    line: int
    image_path: Path | None
    text: str
    category: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRow:
    """One row that cannot be used: `reason` names the kind of fault, `detail` what this row holds."""

    line: int
    reason: str
    detail: str = ""


def warn(message: str) -> None:
    """Show a message on stderr."""
    console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def read_catalogue(
    path: Path,
    *,
    labels: Sequence[str] | None,
    spec: PreprocessingSpec,
    skip_bad_rows: bool = False,
    on_skipped: Callable[[str], None] = warn,
) -> list[Item]:
    """All items of a CSV, every image decoded once to see that it can be.

    labels      the known categories; None: any
    on_skipped  takes the report on bad rows, where they are skipped
    raises      UserError with that report, where they are not
    """
    rows = list(read_rows(path))
    judged = judge_rows(rows, path, labels, spec)
    items = [row for row in judged if isinstance(row, Item)]
    bad_rows = [row for row in judged if isinstance(row, BadRow)]
    if bad_rows:
        report = f"{path}: {report_on(bad_rows, len(rows), labels)}"
        if not skip_bad_rows:
            raise UserError(f"{report}\nMend them, or leave them out with --skip-bad-rows.")
        on_skipped(f"{report}\nThey are left out.")
    if not items:
        raise UserError(f"{path}: no usable row in it")
    return items


def labels_of(items: Iterable[Item]) -> list[str]:
    """The categories that occur, sorted."""
    return sorted({item.category for item in items})


def read_rows(path: Path) -> Iterator[Item | BadRow]:
    """The rows as they stand in the file, image paths resolved, nothing else looked at."""
    try:
        # Surrogates carry bytes that are not UTF-8 past the CSV reader, so that they spoil one row only.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header: list[str] | None = None
            while True:
                line = reader.line_num + 1  # where the row begins: quoted cells may hold line breaks
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    yield BadRow(line=line, reason="broken quoting", detail=str(error))
                    continue
                if header is None:
                    header = _checked_header(cells or [], path)
                elif cells is None:
                    return
                elif cells:
                    yield _to_item(line, cells, header, path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from None


def _checked_header(cells: Sequence[str], path: Path) -> list[str]:
    header = [name.strip() for name in cells]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}. Found: {', '.join(header) or 'nothing'}; "
            f"required: {', '.join(COLUMNS)}, separated by commas, named in the first line."
        )
    return header


def _to_item(line: int, cells: Sequence[str], header: Sequence[str], directory: Path) -> Item | BadRow:
    if len(cells) != len(header):
        detail = f"{len(cells)}, where the header has {len(header)}"
        return BadRow(line=line, reason="wrong number of columns", detail=detail)
    image_path, text, category = (cells[header.index(name)].strip() for name in COLUMNS)
    try:
        (image_path + text + category).encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00
        return BadRow(line=line, reason="invalid UTF-8", detail=f"byte 0x{byte:02x}")
    resolved = directory / image_path if image_path else None
    return Item(line=line, image_path=resolved, text=text, category=category)


def judge_rows(
    rows: Sequence[Item | BadRow], path: Path, labels: Collection[str] | None, spec: PreprocessingSpec
) -> list[Item | BadRow]:
    """Each row that cannot be used as a BadRow in its place."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(_judge, row, labels, spec) for row in rows]
        return wait_for(futures, f"Checking {path.name}")


def _judge(row: Item | BadRow, labels: Collection[str] | None, spec: PreprocessingSpec) -> Item | BadRow:
    if isinstance(row, BadRow):
        return row
    return _category_fault(row, labels) or _text_fault(row, spec) or _image_fault(row, spec) or row


def _category_fault(item: Item, labels: Collection[str] | None) -> BadRow | None:
    if not item.category:
        return BadRow(line=item.line, reason="empty category")
    if labels is not None and item.category not in labels:
        return BadRow(line=item.line, reason=UNKNOWN_CATEGORY, detail=repr(item.category))
    return None


def _text_fault(item: Item, spec: PreprocessingSpec) -> BadRow | None:
    if not item.text and item.image_path is None:
        return BadRow(line=item.line, reason="neither image nor text")
    num_bytes = len(item.text.encode())
    if num_bytes > spec.max_text_bytes:
        detail = f"{num_bytes:,} bytes, at most {spec.max_text_bytes:,}"
        return BadRow(line=item.line, reason="text too long", detail=detail)
    return None


def _image_fault(item: Item, spec: PreprocessingSpec) -> BadRow | None:
    if item.image_path is None:
        return None
    try:
        decode_image(item.image_path.read_bytes(), spec)
    except FileNotFoundError:
        return BadRow(line=item.line, reason="missing image file", detail=str(item.image_path))
    except InvalidInput as error:
        return BadRow(line=item.line, reason="unusable image", detail=f"{item.image_path}: {error}")
    except (OSError, ValueError) as error:  # a directory, no permission, a NUL in the path
        return BadRow(line=item.line, reason="unreadable image file", detail=f"{item.image_path}: {error}")
    return None


def report_on(bad_rows: Sequence[BadRow], num_rows: int, labels: Sequence[str] | None) -> str:
    """How many of which kind, then every one of them."""
    counts = Counter(row.reason for row in bad_rows)
    summary = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    lines = [f"{len(bad_rows):,} of {num_rows:,} rows cannot be used: {summary}"]
    for row in bad_rows:
        lines.append(f"  line {row.line}: {row.reason}" + (f": {row.detail}" if row.detail else ""))
    if labels is not None and UNKNOWN_CATEGORY in counts:
        lines.append(f"Known categories: {', '.join(labels)}.")
    return "\n".join(lines)
