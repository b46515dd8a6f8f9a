"""The rows of a CSV as they stand in the file, each with the line where it begins."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence

from diptych.data.items import BadRow, Item
from diptych.data.location import Location
from diptych.errors import UserError

COLUMNS = ("image_path", "description", "category")


def read_csv(table: Location) -> Iterator[Item | BadRow]:
    """Image paths resolved, nothing else looked at. One row at a time is in memory."""
    # Surrogates carry bytes that are not UTF-8 past the CSV reader, so that they spoil one row only.
    with table.open() as source:
        text = io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1  # where the row begins: quoted cells may hold line breaks
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield BadRow(line=line, reason="broken quoting", detail=str(error))
                continue
            if header is None:
                header = _checked_header(cells or [], table)
            elif cells is None:
                return
            elif cells:
                yield _to_item(line, cells, header, table)


def _checked_header(cells: Sequence[str], table: Location) -> list[str]:
    header = [name.strip() for name in cells]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(
            f"{table}: no column {', '.join(missing)}. Found: {', '.join(header) or 'nothing'}; "
            f"required: {', '.join(COLUMNS)}, separated by commas, named in the first line."
        )
    return header


def _to_item(line: int, cells: Sequence[str], header: Sequence[str], table: Location) -> Item | BadRow:
    if len(cells) != len(header):
        detail = f"{len(cells)}, where the header has {len(header)}"
        return BadRow(line=line, reason="wrong number of columns", detail=detail)
    image_path, text, category = (cells[header.index(name)].strip() for name in COLUMNS)
    try:
        (image_path + text + category).encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00
        return BadRow(line=line, reason="invalid UTF-8", detail=f"byte 0x{byte:02x}")
    image = table.beside(image_path) if image_path else None
    # Interned: millions of rows share the names of their few categories.
    return Item(table=table, line=line, image=image, text=text, category=sys.intern(category))
