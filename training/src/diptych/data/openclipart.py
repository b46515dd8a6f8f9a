"""Makes images and CSV tables from Debian's openclipart packages.

Steps: find, shrink, describe, group, split, write. openclipart.toml holds the categories.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.data.clipart_folders import Drawing, FolderTable, find_drawings, load_folder_table
from diptych.data.image_hashes import UnusablePicture, is_giant, shrink_file
from diptych.data.near_duplicates import group_near_duplicates
from diptych.data.prepared import Prepared, PreparedTable, read_stamp, remove_stamp, write_stamp
from diptych.data.splits import SHARES, split_groups
from diptych.data.svg_metadata import read_title_and_description
from diptych.data.text_cleaning import compose_text
from diptych_serving.debian import PackagesUnavailable, download_packages, unpacked
from diptych_serving.errors import UserError
from diptych_serving.progress import wait_for

VERSION = 1  # increase it when this code makes other files from the same drawings
PACKAGES = ("openclipart-png", "openclipart-svg")
FOLDER_TABLE = Path(__file__).with_name("openclipart.toml")
CSV_HEADER = ("image_path", "description", "category")
# Where the CSVs of each table of openclipart.toml go, below the output directory.
TABLE_DIRECTORIES = {"eleven": ".", "article": "article"}


def prepare_openclipart(out: Path, *, source: Path | None = None, seed: int = 0) -> Prepared:
    """Write {train,val,test}.csv, article/{train,val,test}.csv and images/ into `out`.

    source   directory with the two unpacked packages; None: download them with apt
    returns  the counts; does nothing if `out` already holds this data
    """
    fingerprint = _fingerprint(source, seed)
    if (prepared := read_stamp(out, fingerprint)) is not None:
        return prepared
    remove_stamp(out)

    table = load_folder_table(FOLDER_TABLE)
    with _open_tree(source, out / "download") as tree:
        found = find_drawings(tree)
        wanted = [drawing for drawing in found if table.wants(drawing)]
        hash_of, left_out = _shrink_all(wanted, tree / "png", out / "images")
        if not hash_of:
            raise UserError(
                f"{tree}: found {len(found):,} drawings, none in the folders that {FOLDER_TABLE} lists"
            )
        text_of = {drawing: _read_text(drawing, tree / "svg", table) for drawing in hash_of}
    groups = group_near_duplicates(np.array(list(hash_of.values())), list(text_of.values()))
    group_of = dict(zip(hash_of, groups.tolist(), strict=True))

    tables = {}
    for name, directory in TABLE_DIRECTORIES.items():
        categories = {drawing: table.categories(drawing, name) for drawing in found}
        category_of = {d: min(categories[d]) for d in hash_of if len(categories[d]) == 1}
        split_of = _split(category_of, group_of, seed)
        _write_csvs(out, directory, category_of, text_of, split_of)
        tables[name] = PreparedTable(
            directory=str(out / directory),
            num_items=_count(category_of, split_of),
            num_groups=len({group_of[drawing] for drawing in category_of}),
            num_without_text=sum(not text_of[drawing] for drawing in category_of),
            num_ambiguous=sum(len(names) > 1 for names in categories.values()),
        )
    prepared = Prepared(tables=tables, left_out=left_out, is_new=True)
    write_stamp(out, fingerprint, prepared)
    return prepared


@contextlib.contextmanager
def _open_tree(source: Path | None, cache: Path) -> Iterator[Path]:
    """The directory that holds png/ and svg/."""
    if source is not None:
        yield _find_tree(source)
        return
    try:
        with unpacked(download_packages(PACKAGES, cache)) as directory:
            yield _find_tree(directory)
    except PackagesUnavailable as error:
        raise UserError(
            f"cannot get Debian's packages {' and '.join(PACKAGES)}: {error}.\n"
            "On a Debian or Ubuntu machine that can: apt-get download " + " ".join(PACKAGES) + "\n"
            "Then unpack both into one directory:\n"
            + "".join(f"    dpkg-deb -x {name}_*.deb DIR\n" for name in PACKAGES)
            + "and run: diptych data openclipart --from DIR"
        ) from None


def _find_tree(directory: Path) -> Path:
    for tree in (directory, directory / "openclipart", directory / "usr" / "share" / "openclipart"):
        if (tree / "png").is_dir() and (tree / "svg").is_dir():
            return tree
    raise UserError(
        f"{directory}: found no png/ and svg/ in it, in openclipart/ or in usr/share/openclipart/ below it. "
        f"--from takes the directory into which both {' and '.join(PACKAGES)} were unpacked."
    )


def _shrink_all(
    drawings: Sequence[Drawing], png: Path, images: Path
) -> tuple[dict[Drawing, NDArray[np.bool_]], dict[str, str]]:
    """Perceptual hashes of the written images, and the reasons for those left out, in order."""

    def shrink(drawing: Drawing) -> NDArray[np.bool_] | UnusablePicture:
        try:
            return shrink_file(_file(png, drawing, ".png"), _file(images, drawing, ".png"))
        except UnusablePicture as error:
            return error

    # One giant at a time, which takes up to a gigabyte, while the small ones use the other cores.
    with ThreadPoolExecutor(1) as giants, ThreadPoolExecutor(os.cpu_count()) as others:
        futures = [
            (giants if is_giant(_file(png, drawing, ".png")) else others).submit(shrink, drawing)
            for drawing in drawings
        ]
        results = dict(zip(drawings, wait_for(futures, "Shrinking drawings"), strict=True))
    hash_of = {d: result for d, result in results.items() if not isinstance(result, UnusablePicture)}
    left_out = {
        str(d.path): str(result) for d, result in results.items() if isinstance(result, UnusablePicture)
    }
    return hash_of, left_out


def _read_text(drawing: Drawing, svg: Path, table: FolderTable) -> str:
    path = _file(svg, drawing, ".svg")
    title, description = read_title_and_description(path) if path.is_file() else ("", "")
    return compose_text(title, description, file_stem=path.stem, useless=table.useless_texts)


def _file(directory: Path, drawing: Drawing, suffix: str) -> Path:
    return directory / f"{drawing.path}{suffix}"


def _split(
    category_of: Mapping[Drawing, str], group_of: Mapping[Drawing, int], seed: int
) -> dict[Drawing, str]:
    groups = [group_of[drawing] for drawing in category_of]
    return dict(zip(category_of, split_groups(list(category_of.values()), groups, seed=seed), strict=True))


def _write_csvs(
    out: Path,
    directory: str,
    category_of: Mapping[Drawing, str],
    text_of: Mapping[Drawing, str],
    split_of: Mapping[Drawing, str],
) -> None:
    """image_path is relative to the CSV, so that `out` can be moved."""
    (out / directory).mkdir(parents=True, exist_ok=True)
    images = os.path.relpath(out / "images", out / directory)
    for split in SHARES:
        with (out / directory / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(CSV_HEADER)
            for drawing, category in category_of.items():
                if split_of[drawing] == split:
                    writer.writerow((f"{images}/{drawing.path}.png", text_of[drawing], category))


def _count(category_of: Mapping[Drawing, str], split_of: Mapping[Drawing, str]) -> dict[str, dict[str, int]]:
    counts = {category: dict.fromkeys(SHARES, 0) for category in sorted(set(category_of.values()))}
    for drawing, category in category_of.items():
        counts[category][split_of[drawing]] += 1
    return counts


def _fingerprint(source: Path | None, seed: int) -> str:
    """Of all that decides the result."""
    parts = (VERSION, source and source.resolve(), seed, FOLDER_TABLE.read_text("utf-8"))
    return hashlib.sha256(repr(parts).encode()).hexdigest()
