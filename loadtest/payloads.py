"""The requests: unique, made of a table's real images and texts, in the given mix.

Must not know protocols, clocks or Locust.
"""

from __future__ import annotations

import csv
import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from diptych_client._answer import Request
from diptych_serving.errors import UserError

BOTH, IMAGE, TEXT, CORRUPT = "both", "image", "text", "corrupt"
KINDS = (BOTH, IMAGE, TEXT, CORRUPT)
DEFAULT_MIX = "both=70 image=15 text=10 corrupt=5"
# Images are held in memory; more of them would not make the load more realistic.
MAX_ROWS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Payload:
    """One call. A corrupt one must be refused as the caller's error."""

    kind: str
    request: Request

    @property
    def must_be_refused(self) -> bool:
        return self.kind == CORRUPT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table; empty if a modality is missing."""

    image: bytes
    words: bytes


def parse_mix(text: str) -> dict[str, float]:
    """`both=70 image=15 text=10 corrupt=5`: the share of each kind of call, on any scale."""
    mix = {}
    for part in re.split(r"[,\s]+", text.strip()):
        kind, _, weight = part.partition("=")
        if kind not in KINDS or not re.fullmatch(r"\d+(\.\d+)?", weight):
            raise UserError(f"--mix: found {part!r}; accepted: KIND=WEIGHT, KIND one of {', '.join(KINDS)}")
        mix[kind] = float(weight)
    if not sum(mix.values()):
        raise UserError(f"--mix: found {text!r}; at least one weight must be above 0")
    return mix


def read_rows(catalogue: Path) -> list[Row]:
    """The rows of a CSV with image_path (relative to it) and description."""
    try:
        with catalogue.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            missing = {"image_path", "description"} - set(table.fieldnames or ())
            if missing:
                raise UserError(f"{catalogue}: column {' and '.join(sorted(missing))} is missing")
            lines = list(table)
    except OSError as error:
        raise UserError(f"--catalogue {catalogue}: {error.strerror}. `make demo` makes one.") from None
    chosen = random.Random(0).sample(lines, min(len(lines), MAX_ROWS))
    return [_read_row(catalogue, line) for line in chosen]


def _read_row(catalogue: Path, line: Mapping[str, str]) -> Row:
    image = b""
    if line["image_path"]:
        try:
            image = (catalogue.parent / line["image_path"]).read_bytes()
        except OSError as error:
            raise UserError(f"{catalogue}: {line['image_path']}: {error.strerror}") from None
    return Row(image=image, words=line["description"].strip().encode())


class PayloadSource:
    """An endless supply; the same seed gives the same calls, except for request ids."""

    def __init__(self, rows: list[Row], mix: Mapping[str, float], *, seed: int) -> None:
        self._kinds, self._weights = list(mix), list(mix.values())
        self._random = random.Random(seed)
        self._with_image = [row for row in rows if row.image]
        self._with_words = [row for row in rows if row.words]
        self._complete = [row for row in rows if row.image and row.words]
        needed = {BOTH: self._complete, IMAGE: self._with_image, TEXT: self._with_words}
        for kind, candidates in needed.items():
            if mix.get(kind) and not candidates:
                raise UserError(f"--mix: {kind} is asked for, but the catalogue has no such row")
        if mix.get(CORRUPT) and not self._with_image:
            raise UserError("--mix: corrupt is asked for, but the catalogue has no image to damage")
        self._corruptions = _cycle(self._truncated, self._not_a_image, self._empty, self._not_utf8)

    def draw(self) -> Payload:
        (kind,) = self._random.choices(self._kinds, self._weights)
        if kind == CORRUPT:
            return Payload(kind=kind, request=next(self._corruptions)())
        if kind == BOTH:
            row = self._random.choice(self._complete)
        elif kind == IMAGE:
            row = Row(image=self._random.choice(self._with_image).image, words=b"")
        else:
            row = Row(image=b"", words=self._random.choice(self._with_words).words)
        return Payload(kind=kind, request=_unique(row))

    def _truncated(self) -> Request:
        image = self._random.choice(self._with_image).image
        return Request(image=image[: len(image) // 2], text=b"half an image")

    def _not_a_image(self) -> Request:
        return Request(image=b"A text file that someone has renamed to photo.jpg.\n")

    def _empty(self) -> Request:
        return Request()

    def _not_utf8(self) -> Request:
        return Request(text=b"caf\xe9 au lait")


def _unique(row: Row) -> Request:
    """Make each call's bytes unique, so that no cache can answer for the server.

    Images get bytes after their end, which decoders skip; texts get a number.
    """
    request = Request()
    mark = request.request_id.encode()
    image = row.image and row.image + mark
    words = row.words and row.words + b" %d" % int(request.request_id[:8], 16)
    return dataclasses.replace(request, image=image, text=words)


def _cycle(*makers: Callable[[], Request]) -> Iterator[Callable[[], Request]]:
    while True:
        yield from makers
