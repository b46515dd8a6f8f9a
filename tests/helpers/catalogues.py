"""Catalogues of drawn images and short texts, in three categories that both tell apart."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"cold": (40, 80, 220), "green": (30, 170, 60), "warm": (220, 60, 30)}
WORDS = {"cold": "ice snow winter lake", "green": "leaf grass garden tree", "warm": "fire sun summer lamp"}


def write_picture(path: Path, category: str, seed: int) -> None:
    """A shape in the category's colour on white."""
    image = Image.new("RGB", (48 + seed % 17, 40), "white")
    corner = 2 + seed % 9
    ImageDraw.Draw(image).ellipse((corner, corner, 24 + corner, 22 + corner), fill=COLOURS[category])
    image.save(path)


def write_catalogue(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    """A CSV in the article's format."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_path", "description", "category"), *rows])
    return path


def make_catalogue(
    directory: Path, num_items: int, first_seed: int = 0, wrong_every: int | None = None
) -> Path:
    """Items of three categories; every seventh lacks its image, every eighth its text.

    wrong_every  each item whose seed it divides has another's category
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(first_seed, first_seed + num_items):
        category = sorted(COLOURS)[seed % 3]
        words = WORDS[category].split()
        image = f"{seed}.png"
        write_picture(directory / image, category, seed)
        text = f"a {words[seed % 4]} and a {words[(seed + 1) % 4]} number {seed}"
        given = sorted(COLOURS)[(seed + 1) % 3] if wrong_every and seed % wrong_every == 0 else category
        rows.append((image if seed % 7 else "", text if seed % 8 or not seed % 7 else "", given))
    return write_catalogue(directory / "items.csv", rows)
