"""From an unpacked pair of packages to CSVs, on a small tree of real drawings."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from diptych.data import image_hashes as pictures
from diptych.data.openclipart import prepare_openclipart
from diptych.data.prepared import print_summary
from diptych_serving.errors import UserError

SVG = """<svg xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/">
<cc:Work><dc:title>{title}</dc:title></cc:Work></svg>"""


def draw(tree: Path, name: str, title: str, seed: int) -> None:
    """A PNG of boxes that no other seed has, and its SVG."""
    image = Image.new("RGBA", (120, 100), (0, 0, 0, 0))
    rng = np.random.default_rng(seed)
    for x, y in rng.integers(0, 80, (12, 2)).tolist():
        grey = int(rng.integers(0, 200))
        ImageDraw.Draw(image).rectangle((x, y, x + 20, y + 15), fill=(grey, grey, grey, 255))
    for suffix in ("png", "svg"):
        (tree / suffix / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(tree / "png" / f"{name}.png")
    (tree / "svg" / f"{name}.svg").write_text(SVG.format(title=title), "utf-8")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What unpacking both packages leaves: 20 animals, 20 books, a few oddities."""
    tree = tmp_path / "usr" / "share" / "openclipart"
    for i in range(20):
        draw(tree, f"animals/cat_{i:02}", f"Cat number {i}", seed=i)
        draw(tree, f"education/books/book_{i:02}", f"Book number {i}", seed=100 + i)
    draw(tree, "recreation/games/cards/ace", "Ace of spades", seed=200)
    draw(tree, "animals/nameless", "Unnamed", seed=201)
    draw(tree, "animals/fish", "Fish", seed=202)
    (tree / "png" / "food").mkdir()
    (tree / "png" / "food" / "fish.png").symlink_to("../animals/fish.png")
    (tree / "png" / "animals" / "same.png").symlink_to("cat_00.png")
    Image.new("LA", (9, 9)).save(tree / "png" / "animals" / "blank.png")
    (tree / "png" / "animals" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    return tmp_path


def read_all(directory: Path) -> list[dict[str, str]]:
    rows = []
    for split in ("train", "val", "test"):
        with (directory / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows += [row | {"split": split} for row in csv.DictReader(file)]
    return rows


@pytest.mark.parametrize("below", ["", "usr/share", "usr/share/openclipart"])
def test_writes_both_tables_in_the_articles_format(source: Path, tmp_path: Path, below: str) -> None:
    out = tmp_path / "out"
    prepared = prepare_openclipart(out, source=source / below, seed=0)
    rows = read_all(out)
    assert list(rows[0])[:3] == ["image_path", "description", "category"]
    assert prepared.tables["eleven"].num_items["education"] == {"train": 14, "val": 3, "test": 3}
    assert {row["category"] for row in read_all(out / "article")} == {"books"}
    for directory in (out, out / "article"):
        assert all((directory / row["image_path"]).is_file() for row in read_all(directory))


def test_each_drawing_occurs_once_and_only_where_its_category_is_clear(source: Path, tmp_path: Path) -> None:
    prepared = prepare_openclipart(tmp_path / "out", source=source)
    paths = [row["image_path"] for row in read_all(tmp_path / "out")]
    assert len(paths) == len(set(paths)) == 41
    assert not [path for path in paths if "same" in path or "fish" in path or "ace" in path]
    assert prepared.tables["eleven"].num_ambiguous == 1


def test_a_useless_title_leaves_an_empty_description(source: Path, tmp_path: Path) -> None:
    prepare_openclipart(tmp_path / "out", source=source)
    texts = {row["image_path"]: row["description"] for row in read_all(tmp_path / "out")}
    assert texts["images/animals/nameless.png"] == ""
    assert texts["images/animals/cat_03.png"] == "Cat number 3"


def test_drawings_that_cannot_be_used_are_named_with_the_reason(source: Path, tmp_path: Path) -> None:
    prepared = prepare_openclipart(tmp_path / "out", source=source)
    assert prepared.left_out["animals/blank"] == "blank"
    assert prepared.left_out["animals/broken"].startswith("damaged: ")
    console = Console(record=True, width=100, quiet=False)
    print_summary(prepared, console)
    assert "left out: animals/blank: blank" in console.export_text()


def test_a_second_run_computes_nothing(source: Path, tmp_path: Path) -> None:
    first = prepare_openclipart(tmp_path / "out", source=source)
    images = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    second = prepare_openclipart(tmp_path / "out", source=source)
    assert (first.is_new, second.is_new) == (True, False)
    assert second.tables == first.tables
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == images


def test_another_seed_or_a_lost_csv_makes_it_run_again(source: Path, tmp_path: Path) -> None:
    prepare_openclipart(tmp_path / "out", source=source, seed=0)
    assert prepare_openclipart(tmp_path / "out", source=source, seed=1).is_new
    (tmp_path / "out" / "article" / "val.csv").unlink()
    assert prepare_openclipart(tmp_path / "out", source=source, seed=1).is_new


def test_a_directory_without_the_packages_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}: found no png/ and svg/ .*openclipart-png"):
        prepare_openclipart(tmp_path / "out", source=tmp_path)


def test_without_apt_the_error_says_what_to_unpack_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"no apt-get\.\n[\s\S]*dpkg-deb -x openclipart-svg_\*\.deb DIR\n.*--from DIR"
    ):
        prepare_openclipart(tmp_path / "out")


def test_shrinking_composites_on_white_and_trims_the_page(tmp_path: Path) -> None:
    page = Image.new("RGBA", (3000, 2000), (0, 0, 0, 0))
    page.paste((0, 0, 255, 255), (1000, 500, 2000, 1100))
    page.putpixel((1000, 500), (0, 0, 0, 0))
    page.save(tmp_path / "page.png")
    hash_bits = pictures.shrink_file(tmp_path / "page.png", tmp_path / "small.png")
    assert hash_bits.shape == (256,)
    with Image.open(tmp_path / "small.png") as small:
        assert small.mode == "RGB"
        assert small.size == (500, 300)
        assert small.getpixel((250, 150)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_keeps_its_drawing(tmp_path: Path, mode: str) -> None:
    drawing = Image.new("L", (40, 30), 255)
    drawing.paste(0, (10, 10, 30, 20))
    drawing.convert(mode).save(tmp_path / "a.png")
    pictures.shrink_file(tmp_path / "a.png", tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as small:
        assert small.size == (20, 10)


def test_a_picture_beyond_reason_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_001)).save(tmp_path / "huge.png")
    with pytest.raises(pictures.UnusablePicture, match="20000 x 10001 pixels, more than 200,000,000"):
        pictures.shrink_file(tmp_path / "huge.png", tmp_path / "small.png")
