"""One row of a table: an item that can be used, or what is wrong with it. Not how rows are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from diptych.data.location import Location
from diptych.errors import UserError


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
        try:
            return self.image.read_bytes() if self.image else b""
        except (OSError, ValueError) as error:
            raise UnusableItem(f"{self.place}: cannot read its image {self.image}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """One row that cannot be used: `reason` names the kind of fault, `detail` what this row holds."""

    line: int
    reason: str
    detail: str = ""


def is_parquet(table: Location) -> bool:
    """By the name alone: .parquet or .pq; everything else is CSV."""
    return table.name.lower().endswith((".parquet", ".pq"))


def unit_of(table: Location) -> str:
    """What its rows are counted in. A row of CSV may span lines, and editors show lines."""
    return "row" if is_parquet(table) else "line"
