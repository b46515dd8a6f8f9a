"""Splits the lines of a CSV into records, and finds the rows that a broken quote swallows.

A quoted cell ends at a quote before a comma or a line's end. A correct file is then read as RFC 4180 says.
In a broken file, `"a 12" ruler"` is one cell, although its inner quote should be doubled. So the lines of
an unreadable record stay together, and none becomes an item. If that leaves a cell open, a line with an
even number of quotes and the right number of commas is its own row: `a.png,"12"ruler,art`.
"""

from __future__ import annotations

import csv
import dataclasses
import re
import sys
from collections.abc import Iterator
from typing import TextIO

OPENING = re.compile(r'(?:^|,)"')
# Two quotes are one quote of the text. A single quote that neither pattern finds should be doubled.
CLOSING = re.compile(r'""|"(?=[,\r\n]|\Z)')
MAX_LINE_CHARS = 2**26
# The fault of a record whose quote is never closed: the rest of the file.
MAX_RECORD_CHARS = 2**27


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The lines from `line` to `last_line`.

    cells  None if they cannot be separated
    fault  the reason; empty if they can
    """

    line: int
    last_line: int
    cells: list[str] | None
    fault: str = ""


class LineTooLong(Exception):
    """The file is not CSV. The message names the line."""


def split_records(lines: Iterator[str]) -> Iterator[Record]:
    """All records except empty lines, one at a time. Raises LineTooLong."""
    csv.field_size_limit(sys.maxsize)  # a long cell is not a broken quote; the length of `lines` is limited
    number, num_commas = 0, -1
    for line in lines:
        number += 1
        first, num_chars = number, len(line)
        if num_commas < 0:  # of the header
            num_commas = line.count(",")
        if '"' not in line:  # nearly all
            if text := line.rstrip("\r\n"):
                yield Record(line=first, last_line=first, cells=text.split(","))
            continue
        is_row = line.count('"') % 2 == 0 and line.count(",") == num_commas
        parts, is_open = [line], _leaves_cell_open(line, is_open=False) and not is_row
        while is_open and (line := next(lines, "")):
            number += 1
            is_open = _leaves_cell_open(line, is_open=True)
            num_chars += len(line)
            if num_chars <= MAX_RECORD_CHARS:
                parts.append(line)
        cells = None if is_open or num_chars > MAX_RECORD_CHARS else _cells(parts)
        fault = ""
        if cells is None:
            fault = "a quote is never closed" if is_open else "a quote inside a quoted cell must be doubled"
        yield Record(line=first, last_line=number, cells=cells, fault=fault)


def limited_lines(text: TextIO) -> Iterator[str]:
    """The lines of a text file. Raises LineTooLong before a line fills the memory."""
    number = 0
    while line := text.readline(MAX_LINE_CHARS):
        number += 1
        if len(line) == MAX_LINE_CHARS:
            raise LineTooLong(f"line {number:,} has {MAX_LINE_CHARS:,} characters or more")
        yield line


def _leaves_cell_open(line: str, *, is_open: bool) -> bool:
    """Whether a quoted cell is open at the end of the line, given whether one is at its start."""
    at = 0
    while True:
        match = (CLOSING if is_open else OPENING).search(line, at)
        if match is None:
            return is_open
        at = match.end()
        if match[0] != '""':
            is_open = not is_open


def _cells(parts: list[str]) -> list[str] | None:
    try:
        rows = list(csv.reader(parts, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
