"""The rows of a CSV or Parquet table, a few at a time.

A row is an item, and the cells to copy beside its answer. Knows no client.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from diptych_client._errors import InvalidInput

PATH, IMAGE, TEXT = "image_path", "image", "description"
ACCEPTED_COLUMNS = f"one or more of {PATH}, {IMAGE} (Parquet only) and {TEXT}"
MAX_CELL_CHARACTERS = 2**24
ROWS_AT_ONCE = 16  # of images, which may have some MB each
# Otherwise pyarrow reads the images of a whole group of rows at once, often the whole file.
ONE_PAGE_AT_A_TIME = {"pre_buffer": False, "buffer_size": 2**20}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    number  1 for the first
    image   a path, or an encoded file's bytes; None for no image
    text    None for no text
    kept    every cell but the image's bytes, by column
    error   why the row cannot be read, if so
    """

    number: int
    image: Path | bytes | None = None
    text: str | None = None
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: InvalidInput | None = None


class Table(Protocol):
    """
    num_rows      counted when the table is opened
    kept          the columns that rows keep
    has_images  whether there is a column of images beside them
    """

    num_rows: int
    kept: pa.Schema
    has_images: bool

    def rows(self, *, after: int) -> Iterator[Row]:
        """All rows but the first `after`."""
        ...


def open_table(path: Path) -> Table:
    """Raises InvalidInput if it is neither CSV nor Parquet, or has none of the columns."""
    kinds: dict[str, Callable[[Path], Table]] = {".csv": CsvTable, ".parquet": ParquetTable}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise InvalidInput.refusing("table", str(path), "a file that ends in .csv or .parquet")
    try:
        table = kind(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (csv.Error, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    if not table.has_images and not {PATH, TEXT}.intersection(table.kept.names):
        found = f"{path} with the columns {', '.join(table.kept.names) or '(none)'}"
        raise InvalidInput.refusing("table", found, ACCEPTED_COLUMNS)
    return table


def rows_of(table: Table, path: Path, *, after: int) -> Iterator[Row]:
    """All rows but the first `after`. Raises InvalidInput for a table that breaks in between."""
    try:
        yield from table.rows(after=after)
    except (csv.Error, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's; pyarrow raises others for damaged files
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InvalidInput:
    return InvalidInput.refusing(
        "table", f"{path}: {' '.join(str(error).split())}", "a readable CSV or Parquet file"
    )


class CsvTable:
    """UTF-8, with a header. Every cell is text; an empty one is absent."""

    has_images = False

    def __init__(self, path: Path) -> None:
        self._path = path
        # The whole file is read once first, so that a broken table is found now, not hours later.
        self._header, self.num_rows = [], 0
        for number, cells in self._lines():
            if number == 0:
                self._header = cells
            self.num_rows = number
        twice = {name for name in self._header if self._header.count(name) > 1}
        if twice:
            raise InvalidInput.refusing(
                "table", f"{path}: columns named twice: {sorted(twice)}", "unique names"
            )
        self.kept = pa.schema([(name, pa.string()) for name in self._header])

    def rows(self, *, after: int) -> Iterator[Row]:
        for number, cells in self._lines():
            if number > after:
                yield self._row(number, cells)

    def _row(self, number: int, cells: list[str]) -> Row:
        if len(cells) != len(self._header):
            accepted = f"{len(self._header)}, as in the header"
            error = InvalidInput.refusing("row", f"{len(cells)} cells", accepted)
            return Row(number, error=error)
        kept = dict(zip(self._header, cells, strict=True))
        for name, cell in kept.items():
            if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
                return Row(number, error=InvalidInput.refusing(name, "bytes that are not UTF-8", "UTF-8"))
        image = kept.get(PATH, "").strip()
        return Row(number, self._path.parent / image if image else None, kept.get(TEXT), kept)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """The header as number 0, then each row that is not blank."""
        with self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from enumerate(cells for cells in _rows_of(file) if cells)


def _rows_of(file: TextIO) -> Iterator[list[str]]:
    """The cells of each row. Raises csv.Error with the line of an unclosed quote, which would otherwise
    swallow
    the following rows silently."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    reader = csv.reader(file, strict=True)
    while True:
        first_line = reader.line_num + 1
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            message = f"the row that begins in line {first_line} has broken quotes or a huge cell ({error})"
            raise csv.Error(message) from None


class ParquetTable:
    """Images by path, or in a column `image`: bytes, or the struct that Hugging Face datasets writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as file:
            self.num_rows = file.metadata.num_rows
            schema = file.schema_arrow
        image = schema.field(IMAGE).type if IMAGE in schema.names else pa.binary()
        self._is_struct = pa.types.is_struct(image)
        if not self._is_struct and not pa.types.is_binary(image) and not pa.types.is_large_binary(image):
            found = f"{path}: column {IMAGE!r} of {image}"
            raise InvalidInput.refusing("table", found, "bytes, or a struct with a field `bytes`")
        self.has_images = IMAGE in schema.names
        self.kept = pa.schema([field for field in schema if field.name != IMAGE])

    def rows(self, *, after: int) -> Iterator[Row]:
        with self._open() as file:
            groups, number = self._groups_from(file, after)
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups):
                for cells in batch.to_pylist():
                    number += 1
                    if number > after:
                        yield self._row(number, cells)

    def _row(self, number: int, cells: dict[str, Any]) -> Row:
        image = cells.pop(IMAGE, None)
        path = cells.get(PATH)
        if self._is_struct and image is not None:
            path = path or image.get("path")
            image = image.get("bytes")
        if path and not isinstance(path, str):
            return Row(number, error=InvalidInput.refusing(PATH, type(path).__name__, "text"))
        return Row(number, image or (self._path.parent / path if path else None), cells.get(TEXT), cells)

    def _groups_from(self, file: pq.ParquetFile, after: int) -> tuple[list[int], int]:
        """The groups of rows to read, and how many rows lie before them."""
        first, skipped = 0, 0
        while first < file.metadata.num_row_groups:
            num_rows = file.metadata.row_group(first).num_rows
            if skipped + num_rows > after:
                break
            skipped += num_rows
            first += 1
        return list(range(first, file.metadata.num_row_groups)), skipped

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._path, **ONE_PAGE_AT_A_TIME)
