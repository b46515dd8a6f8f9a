"""Finds the drawings of an unpacked openclipart tree, and their categories by openclipart.toml."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from pathlib import Path, PurePosixPath

from diptych_serving.toml_file import read_toml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """One distinct drawing, below png/ and svg/. Paths have no suffix."""

    path: PurePosixPath
    places: frozenset[PurePosixPath]  # `path` and every link to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderTable:
    """openclipart.toml, read. A place is a folder or a single drawing."""

    exclude: frozenset[PurePosixPath]
    useless_texts: frozenset[str]
    category_of: Mapping[str, Mapping[PurePosixPath, str]]  # table -> place -> category

    def categories(self, drawing: Drawing, table: str) -> set[str]:
        """The drawing's categories in a table: none, one, or several if its folders disagree."""
        if any(_closest(place, self.exclude) for place in drawing.places):
            return set()
        category_of = self.category_of[table]
        matches = {_closest(place, category_of) for place in drawing.places}
        return {category_of[match] for match in matches if match is not None}

    def wants(self, drawing: Drawing) -> bool:
        """Whether some table has exactly one category for it."""
        return any(len(self.categories(drawing, table)) == 1 for table in self.category_of)


def load_folder_table(path: Path) -> FolderTable:
    """Each table of the file is one way to sort the drawings: category = [places]."""
    content = read_toml(path, missing="It comes with this package.")
    return FolderTable(
        exclude=frozenset(map(PurePosixPath, content.pop("exclude"))),
        useless_texts=frozenset(content.pop("useless_texts")),
        category_of={
            name: {PurePosixPath(place): category for category in table for place in table[category]}
            for name, table in content.items()
        },
    )


def find_drawings(tree: Path) -> list[Drawing]:
    """All distinct drawings, by path. Debian keeps one copy of each image and links to it."""
    png = (tree / "png").resolve()
    places: dict[Path, set[PurePosixPath]] = {}
    for path in png.rglob("*.png"):
        if path.exists():  # a link may be broken
            places.setdefault(path.resolve(), set()).add(_place(path, png))
    return [Drawing(path=_place(path, png), places=frozenset(places[path])) for path in sorted(places)]


def _place(path: Path, png: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(png).with_suffix(""))


def _closest(place: PurePosixPath, listed: Container[PurePosixPath]) -> PurePosixPath | None:
    return next((parent for parent in (place, *place.parents) if parent in listed), None)
