"""One row of a table: an item that can be used, or what is wrong with it. Not how rows are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from diptych.data.table_file import is_parquet
from diptych.location import Location
from diptych_serving.errors import UserError


class UnusableItem(UserError):
    """An item that turned out unusable when it was read. The message begins with the place of its row.

    A DataLoader rebuilds a worker's exception from the text of the worker's traceback; what follows our name
    in it is our message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A picture among others in one file: the bytes from `start` on."""

    file: Path
    start: int
    num_bytes: int

    def read_bytes(self) -> bytes:
        """The picture. Raises OSError where the file has gone."""
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.num_bytes)

    def __str__(self) -> str:
        return f"cell of {self.num_bytes:,} bytes"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One row that can be used. It lacks an image (None) or a text (empty), never both.

    Holds where its picture is, not the picture: about 500 bytes with a path and a short text.
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
        """The image file, read anew each time; empty where the item has none. Raises UnusableItem."""
        if self.image is None:
            return b""
        try:
            data = self.image.read_bytes()
        except (OSError, ValueError) as error:
            raise UnusableItem(f"{self.place}: cannot read its image {self.image}: {error}") from None
        if not data:  # 0 bytes would pass for an item without an image
            raise UnusableItem(f"{self.place}: its image {self.image} is an empty file")
        return data


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """One row that cannot be used: `reason` names the kind of fault, `detail` what this row holds.

    last_line  of the lines that are lost with it, where a broken quote swallows more than one
    """

    line: int
    reason: str
    detail: str = ""
    last_line: int | None = None

    @property
    def num_rows(self) -> int:
        """How many rows are lost, as far as can be told: a line is a row."""
        return (self.last_line or self.line) - self.line + 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OddCell:
    """A cell of a row that can be used, so long that a quote may be missing and other rows be in it."""

    line: int
    last_line: int
    num_chars: int


def unit_of(table: Location) -> str:
    """What its rows are counted in. A row of CSV may span lines, and editors show lines."""
    return "row" if is_parquet(table) else "line"
