"""The rows of a CSV as they are in the file, each with its first line number."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from diptych.data.csv_records import LineTooLong, Record, limited_lines, split_records
from diptych.data.items import BadRow, Item, OddCell
from diptych.data.table_file import open_text
from diptych.location import Location
from diptych_serving.errors import UserError

COLUMNS = ("image_path", "description", "category")
CATEGORY = "category"
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
# A cell above these limits, or with lines that look like rows, may hold rows after a missing quote.
MAX_CELL_LINES = 10
MAX_CELL_CHARS = 10_000


def read_csv(table: Location, *, needs_category: bool = True) -> Iterator[Item | BadRow | OddCell]:
    """Image paths are resolved, nothing else is checked. One row at a time is in memory.

    needs_category  whether there must be a column of that name; without it, every category is empty
    """
    with open_text(table) as text:
        records = split_records(limited_lines(text))
        try:
            header = _checked_header(next(records, None), table, needs_category)
            for record in records:
                if record.cells is None:
                    yield _broken(record)
                    continue
                yield _to_item(record.line, record.cells, header, table)
                if odd := _odd_cell(record, len(header)):
                    yield odd
        except LineTooLong as error:
            raise UserError(f"{table}: {error}; is it a CSV?") from None


def _checked_header(record: Record | None, table: Location, needs_category: bool) -> list[str]:
    if record is not None and record.cells is None:
        raise UserError(f"{table}: line 1 names the columns, and cannot be read: {record.fault}")
    header = [name.strip() for name in record.cells or []] if record else []
    wanted = COLUMNS if needs_category else [name for name in COLUMNS if name != CATEGORY]
    missing = [name for name in wanted if name not in header]
    if missing:
        raise UserError(
            f"{table}: no column {', '.join(missing)}. Found: {', '.join(header)[:300] or 'nothing'}; "
            f"required: {', '.join(wanted)}, separated by commas, named in the first line."
            f"{_other_separator(header, wanted)}"
        )
    for name in COLUMNS:
        places = [str(number) for number, found in enumerate(header, 1) if found == name]
        if len(places) > 1:
            raise UserError(
                f"{table}: columns {' and '.join(places)} are both named {name}. Rename all but one."
            )
    return header


def _other_separator(header: Sequence[str], wanted: Sequence[str]) -> str:
    line = ",".join(header)
    for separator, name in OTHER_SEPARATORS.items():
        if set(wanted) <= {cell.strip().strip('"') for cell in line.split(separator)}:
            return f" This file is separated by {name}."
    return ""


def _broken(record: Record) -> BadRow:
    num_lost = record.last_line - record.line + 1
    lost = f"; all {num_lost:,} lines are lost" if num_lost > 1 else ""
    return BadRow(
        line=record.line,
        last_line=record.last_line,
        reason="broken quoting",
        detail=f"{record.fault}{lost}",
    )


def _to_item(line: int, cells: Sequence[str], header: Sequence[str], table: Location) -> Item | BadRow:
    if len(cells) != len(header):
        detail = f"{len(cells)}, where the header has {len(header)}"
        return BadRow(line=line, reason="wrong number of columns", detail=detail)
    image_path, text, category = (
        cells[header.index(name)].strip() if name in header else "" for name in COLUMNS
    )
    try:
        (image_path + text + category).encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        is_byte = 0xDC80 <= code <= 0xDCFF  # as "surrogateescape" hides one
        detail = f"byte 0x{code - 0xDC00:02x}" if is_byte else f"lone surrogate U+{code:04X}"
        return BadRow(line=line, reason="invalid UTF-8", detail=detail)
    image = table.beside(image_path) if image_path else None
    # Interned: millions of rows share a few category names.
    return Item(table=table, line=line, image=image, text=text, category=sys.intern(category))


def _odd_cell(record: Record, num_columns: int) -> OddCell | None:
    """Whether a cell of a readable record may hold other rows."""
    num_lines = record.last_line - record.line + 1
    if num_lines == 1:
        return None
    for cell in record.cells or ():
        inner = cell.splitlines()[1:-1]
        if (
            len(inner) + 2 > MAX_CELL_LINES
            or len(cell) > MAX_CELL_CHARS
            or (len(inner) > 1 and all(line.count(",") == num_columns - 1 for line in inner))
        ):
            return OddCell(line=record.line, last_line=record.last_line, num_chars=len(cell))
    return None
