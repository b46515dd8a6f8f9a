"""Detects the kind of a table file by its first bytes, and reads its text."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

from diptych.location import Location
from diptych_serving.errors import UserError

PARQUET_NAME = re.compile(r"\.(parquet|pq)(\.\w+)?$", re.IGNORECASE)  # pandas also writes .parquet.gzip
PARQUET_MAGIC, GZIP_MAGIC = b"PAR1", b"\x1f\x8b"
# Files that are mistaken for tables, by their first bytes, and what to do.
OTHER_KINDS = (
    (PARQUET_MAGIC, "a Parquet file: give it a name that ends in .parquet"),
    (GZIP_MAGIC, "packed with gzip twice, or Parquet inside gzip: unpack it first"),
    (b"PK\x03\x04", "a ZIP archive, as .xlsx and .ods are: save the sheet as CSV, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file (.xls): save the sheet as CSV"),
    (b"BZh", "packed with bzip2: unpack it first, or pack it with gzip"),
    (b"\xfd7zXZ\0", "packed with xz: unpack it first, or pack it with gzip"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard: unpack it first, or pack it with gzip"),
    (b"ARROW1", "an Arrow or Feather file: save it as Parquet"),
    (b"SQLite format 3\0", "an SQLite database: export the table as CSV"),
    (b"%PDF", "a PDF"),
)
OTHER_TEXTS = (
    (b"<", "HTML or XML, perhaps the page of an error or a login: fetch the table itself"),
    (b"{", "JSON: save it as CSV or Parquet"),
    (b"[", "JSON: save it as CSV or Parquet"),
)
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
HEAD_BYTES = 4096
# Exceptions of reading a damaged file, besides OSError.
DAMAGED = (EOFError, zlib.error, UnicodeError)


def is_parquet(table: Location) -> bool:
    """By the name alone: .parquet or .pq, also before one more ending; everything else is CSV."""
    return PARQUET_NAME.search(table.name) is not None


@contextlib.contextmanager
def open_text(table: Location) -> Iterator[io.TextIOWrapper]:
    """A table as text: UTF-8, UTF-16 or UTF-32, gzip unpacked. Raises UserError if it is not text.

    Invalid bytes become surrogates, so that they spoil only their row.
    """
    with table.open() as raw:
        source = _peekable(raw)
        if source.peek(HEAD_BYTES).startswith(GZIP_MAGIC):
            source = _peekable(gzip.GzipFile(fileobj=source))
        head = source.peek(HEAD_BYTES)[:HEAD_BYTES]
        refuse_other_kinds(head, table)
        encoding = _encoding(head, table)
        errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
        yield io.TextIOWrapper(source, encoding=encoding, errors=errors, newline="")


def refuse_other_kinds(head: bytes, table: Location, *, expected: bytes = b"") -> None:
    """Raise UserError for a file of another kind.

    head      its first bytes
    expected  the first bytes of the right kind
    """
    kinds = [*OTHER_KINDS, *((magic, kind) for magic, kind in OTHER_TEXTS if head.lstrip().startswith(magic))]
    for magic, kind in kinds:
        if magic != expected and head.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(magic):
            raise UserError(f"{table}: found {kind}; accepted: CSV, also in gzip, or Parquet")


def _peekable(source: Any) -> io.BufferedReader:
    return io.BufferedReader(source, max(HEAD_BYTES, io.DEFAULT_BUFFER_SIZE))


def _encoding(head: bytes, table: Location) -> str:
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" not in head.partition(b"\n")[0]:
        return "utf-8"
    # UTF-16 without a mark: of the Latin letters of a header every other byte is 0.
    letters = head[:40]
    if len(letters) > 1 and not any(letters[1::2]) and all(letters[::2]):
        return "utf-16-le"
    if len(letters) > 1 and not any(letters[::2]) and all(letters[1::2]):
        return "utf-16-be"
    raise UserError(f"{table}: found a binary file; accepted: CSV, also in gzip, or Parquet")
