"""Tables beyond one CSV in one folder: Parquet, remote files, pictures in cells."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diptych.data.catalogue import read_catalogue
from diptych.data.items import Item
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor
from tests.helpers.repository_files import tiny_tokenizer

PREPROCESSOR = Preprocessor(PreprocessingSpec(image_size_px=32, max_tokens=16), tiny_tokenizer().to_str())


def picture(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def write_parquet(directory: Path, name: str = "items.parquet", **columns: Any) -> Path:
    path = directory / name
    num_rows = len(next(iter(columns.values())))
    columns = {"description": ["words"] * num_rows, "category": ["art"] * num_rows, **columns}
    pq.write_table(pa.table(columns), path)
    return path


def read(path: Path | str, labels: list[str] | None = None, **options: Any) -> list[Item]:
    return read_catalogue(path, labels=labels, preprocessors=[PREPROCESSOR], **options)


def test_pictures_come_as_bytes_in_a_column(tmp_path: Path) -> None:
    pictures = [picture("red"), None, b"", picture("blue")]
    path = write_parquet(tmp_path, image=pictures, description=["a", "b", "c", None])
    items = read(path)
    assert [item.line for item in items] == [1, 2, 3, 4]
    assert [item.text for item in items] == ["a", "b", "c", ""]
    assert [item.read_image() for item in items] == [pictures[0], b"", b"", pictures[3]]
    assert [item.image is None for item in items] == [False, True, True, False]


def test_pictures_come_as_the_struct_of_hugging_face_datasets(tmp_path: Path) -> None:
    (tmp_path / "beside.png").write_bytes(picture("green"))
    cells = [
        {"bytes": picture("red"), "path": "name in the original archive.png"},
        {"bytes": None, "path": "beside.png"},
        {"bytes": None, "path": None},
        None,
    ]
    items = read(write_parquet(tmp_path, image=cells))
    assert [item.read_image() for item in items] == [picture("red"), picture("green"), b"", b""]


def test_pictures_come_by_path_relative_to_the_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    categories = pa.array(["art", "tools", "art"]).dictionary_encode()  # a pandas Categorical
    paths = ["a.png", f"{tmp_path}/a.png", None]
    items = read(write_parquet(tmp_path, image_path=paths, category=categories))
    assert [item.read_image() for item in items] == [picture(), picture(), b""]
    assert [item.category for item in items] == ["art", "tools", "art"]


def test_a_column_of_nothing_but_nulls_is_a_missing_modality(tmp_path: Path) -> None:
    assert [item.image for item in read(write_parquet(tmp_path, image=pa.nulls(2)))] == [None, None]


@pytest.mark.parametrize("name", ["items.csv", "items.parquet"])
def test_a_table_and_its_pictures_may_be_remote(tmp_path: Path, name: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/red.png", picture("red"))
    memory.pipe("/elsewhere/blue.png", picture("blue"))
    paths = ["red.png", "memory://elsewhere/blue.png", "../elsewhere/blue.png", ""]
    rows = "".join(f"{path},words,art\n" for path in paths)
    local = write_parquet(tmp_path, image_path=paths)
    as_csv = f"image_path,description,category\n{rows}".encode()
    memory.pipe(f"/tables/{name}", local.read_bytes() if name == local.name else as_csv)
    items = read(f"memory://tables/{name}")
    assert [item.read_image() for item in items] == [picture("red"), picture("blue"), picture("blue"), b""]


def test_pictures_in_cells_of_a_remote_table_are_read_from_the_local_copy(tmp_path: Path) -> None:
    local = write_parquet(tmp_path, image=[picture()])
    fsspec.filesystem("memory").pipe("/tables/cells.parquet", local.read_bytes())
    (item,) = read("memory://tables/cells.parquet")
    fsspec.filesystem("memory").rm("/tables/cells.parquet")
    assert item.read_image() == picture()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"image": b"not a pictur"}, r"row 2: unusable image: cell of 12 bytes: .*found 12 bytes in no"),
        ({"image": picture()[:50]}, r"row 2: unusable image: .*a damaged file"),
        ({"image_path": "gone.png"}, r"row 2: missing image file: .*gone\.png"),
        ({"image_path": "nowhere://a/b.png"}, r"row 2: unreadable image file: .*Protocol not known: nowhere"),
        ({"description": " "}, r"row 2: neither image nor text"),
        ({"category": None}, r"row 2: empty category"),
        ({"category": "boats"}, r"row 2: unknown category: 'boats'\nKnown categories: art, tools\."),
        ({"description": "x" * 70_000}, r"row 2: text too long: 70,000 bytes, at most 65,536"),
    ],
)
def test_bad_rows_of_parquet_are_reported_by_row_number(
    tmp_path: Path, row: dict[str, Any], complaint: str
) -> None:
    columns: dict[str, list[Any]] = {"image": [None, None], "image_path": [None, None]}
    columns |= {"description": ["fine", "fine"], "category": ["art", "art"]}
    for name, value in row.items():
        columns[name][1] = value
    path = write_parquet(tmp_path, **columns)
    with pytest.raises(UserError, match=rf"items\.parquet: 1 of 2 rows cannot be used: 1 [\s\S]*{complaint}"):
        read(path, ["art", "tools"])
    assert [item.line for item in read(path, ["art"], skip_bad_rows=True, on_warning=str)] == [1]


def test_a_cell_that_is_not_utf_8_spoils_its_row_only(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", b"fine"])
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = write_parquet(tmp_path, description=texts, image_path=pa.nulls(3))
    with pytest.raises(UserError, match=r"1 of 3 rows .*\n  row 2: invalid UTF-8: byte 0xe9\n"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"picture": [b""]}, r"no column image_path or image\. Found: .*, picture; required: image_path or"),
        ({"image": ["a.png"]}, r"column image holds string; expected: bytes, or the struct"),
        ({"image": [{"path": "a.png"}]}, r"column image holds struct<path: string>; expected: bytes"),
        ({"image": [b""], "category": [3]}, r"column category holds int64; expected: strings"),
    ],
)
def test_a_column_of_another_kind_is_named(tmp_path: Path, columns: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read(write_parquet(tmp_path, **columns))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, image=[picture()])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"items\.parquet: cannot read it as Parquet: .*magic bytes"):
        read(path)
    path.write_bytes(b"PAR1" + bytes(100) + whole[104:])
    with pytest.raises(UserError, match=r"items\.parquet: cannot read it"):
        read(path)


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("memory://gone/items.csv", "cannot read it: No such file or directory"),
        ("memory://gone/items.parquet", "cannot read it: No such file or directory"),
        ("nowhere://bucket/items.csv", "cannot read it: ValueError: Protocol not known: nowhere"),
    ],
)
def test_a_remote_table_that_cannot_be_read_is_named(table: str, complaint: str) -> None:
    with pytest.raises(UserError, match=f"{table}: {complaint}"):
        read(table)


def test_pictures_are_copied_once_for_each_version_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))

    def copies() -> set[tuple[str, int]]:
        return {(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "cache/pictures").iterdir()}

    read(write_parquet(tmp_path, image=[picture("red")]))
    first = copies()
    read(tmp_path / "items.parquet")
    assert copies() == first
    (item,) = read(write_parquet(tmp_path, image=[picture("blue")]))
    assert item.read_image() == picture("blue")
    assert copies() > first
    assert {name.rpartition(".")[2] for name, _ in copies()} == {"bin", "npy"}


def test_a_copy_that_finds_no_room_says_where_and_how_to_move_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"copy its images to .*/pictures: Not a directory\. .*DIPTYCH_CACHE"):
        read(write_parquet(tmp_path, image=[picture()]))
