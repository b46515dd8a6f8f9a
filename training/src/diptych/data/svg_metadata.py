"""Reads the title and the description that an author gave to an SVG drawing.

Only those of the Work itself count: a dc:title inside a cc:Agent is a person's name. Entities are not
expanded. Of a truncated file, what was read before the end is kept.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from xml.parsers import expat

FIELDS = ("title", "description")


def read_title_and_description(svg: Path) -> tuple[str, str]:
    """The Work's own title and description, as written; empty if there is none."""
    reader = _WorkReader()
    with contextlib.suppress(expat.ExpatError, _WorkRead):
        reader.parser.Parse(svg.read_bytes(), True)
    title, description = (reader.texts[field] for field in FIELDS)
    return title, description


class _WorkRead(Exception):
    """The rest of the file is paths and gradients: stop there."""


class _WorkReader:
    def __init__(self) -> None:
        self.texts = dict.fromkeys(FIELDS, "")
        self._path: list[str] = []
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        # A default handler, even an idle one, keeps expat from expanding internal entities.
        self.parser.DefaultHandler = lambda data: None

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        self._path.append(name.rpartition(":")[2])

    def _end(self, _name: str) -> None:
        # Some files hold two Works, the first one empty.
        if self._path.pop() == "Work" and any(text.strip() for text in self.texts.values()):
            raise _WorkRead

    def _characters(self, data: str) -> None:
        match self._path:
            case [*_, "Work", field] if field in FIELDS:
                self.texts[field] += data
