"""Writes lines for the operator. A line that cannot be written never ends the server: the terminal may be
closed, or its encoding may lack the letters of a path.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO


def say(line: str) -> None:
    """Write an event or a fault to stderr, at once."""
    _write(sys.stderr, line)


def show(text: str) -> None:
    """Write a result to stdout, at once."""
    _write(sys.stdout, text)


def accept_all_letters() -> None:
    """Let stdout escape letters that its encoding lacks, as stderr does, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # replaced by something that is no file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    with contextlib.suppress(OSError):
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
