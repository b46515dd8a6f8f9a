"""One row of a table: an item, or a bad row with its reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from diptych.data.table_file import is_parquet
from diptych.location import Location
from diptych_serving.errors import UserError


class UnusableItem(UserError):
    """An item that cannot be used, found when it was read. The message starts with the place of its row.

    A DataLoader rebuilds a worker's exception from the text of the traceback, so the message is the part
    after our class name.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """An image among others in one file: the bytes from `start` on."""

    file: Path
    start: int
    num_bytes: int

    def read_bytes(self) -> bytes:
        """The image file. Raises OSError if the file is gone."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.num_bytes)

    def __str__(self) -> str:
        return f"cell of {self.num_bytes:,} bytes"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One row that can be used. It may lack its image (None) or its text (empty), never both.

    It holds the location of its image, not the image: about 500 bytes with a path and a short text.
    """

    table: Location
    line: int
    image: Location | Cell | None
    text: str
    category: str

    @property
    def place(self) -> str:
        """Where to look for it: the table, and the line of a CSV or the row of a Parquet file."""
        return f"{self.table}: {unit_of(self.table)} {self.line}"

    def read_image(self) -> bytes:
        """The image file, read each time; empty if the item has none. Raises UnusableItem."""
        if self.image is None:
            return b""
        try:
            data = self.image.read_bytes()
        except (OSError, ValueError) as error:
            raise UnusableItem(f"{self.place}: cannot read its image {self.image}: {error}") from None
        if not data:  # 0 bytes would count as an item without an image
            raise UnusableItem(f"{self.place}: its image {self.image} is an empty file")
        return data


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """One row that cannot be used: `reason` is the kind of fault, `detail` what this row holds.

    last_line  last of the lines that are lost with it, if a broken quote swallows more than one
    """

    line: int
    reason: str
    detail: str = ""
    last_line: int | None = None

    @property
    def num_rows(self) -> int:
        """The number of lost rows, estimated: a line is a row."""
        return (self.last_line or self.line) - self.line + 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OddCell:
    """A cell of a usable row, so long that a quote may be missing and it may hold other rows."""

    line: int
    last_line: int
    num_chars: int


def unit_of(table: Location) -> str:
    """The unit of its row numbers: lines in a CSV, because rows may span lines and editors show lines."""
    return "row" if is_parquet(table) else "line"
