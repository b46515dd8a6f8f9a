"""Tables as people really save them: packed, in UTF-16, from Excel, behind an address without an answer."""

from __future__ import annotations

import bz2
import gzip
import http.server
import io
import lzma
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from diptych.data.catalogue import read_catalogue
from diptych.data.items import Item
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor
from tests.helpers.repository_files import tiny_tokenizer

PREPROCESSOR = Preprocessor(PreprocessingSpec(image_size_px=32, max_tokens=16), tiny_tokenizer().to_str())
TEXT = "image_path,description,category\n,a red Größe 中文,art\n,a blue cat,tools\n"
COLUMNS = {
    "image_path": ["", ""],
    "description": ["a red Größe 中文", "a blue cat"],
    "category": ["art", "tools"],
}
ACCEPTED = r"; accepted: CSV, also in gzip, or Parquet"


def read(path: Path | str, **options: Any) -> list[Item]:
    return read_catalogue(path, labels=None, preprocessors=[PREPROCESSOR], **options)


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns or COLUMNS), file)
    return file.getvalue()


def feather() -> bytes:
    file = io.BytesIO()
    pyarrow.feather.write_feather(pa.table(COLUMNS), file)
    return file.getvalue()


def archive(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(name, TEXT)
    return file.getvalue()


def name_of(value: str | bytes) -> str:
    """Part of a test's name. Not the bytes: packed ones hold the time, another one in each process."""
    return value if isinstance(value, str) else "content"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.csv", TEXT.encode("utf-8-sig")),
        ("items.csv", TEXT.encode("utf-16")),
        ("items.csv", b"\xfe\xff" + TEXT.encode("utf-16-be")),
        ("items.csv", TEXT.encode("utf-16-le")),
        ("items.csv", TEXT.encode("utf-16-be")),
        ("items.csv", TEXT.encode("utf-32")),
        ("items.csv.gz", gzip.compress(TEXT.encode())),
        ("items.csv", gzip.compress(TEXT.encode("utf-16"))),
        ("items.parquet", parquet()),
        ("items.parquet.gzip", parquet()),
        ("ITEMS.PQ", parquet()),
    ],
    ids=name_of,
)
def test_a_table_in_this_form_is_simply_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [item.text for item in read(tmp_path / name)] == COLUMNS["description"]


def test_a_large_packed_table_is_read_to_its_end(tmp_path: Path) -> None:
    rows = "".join(f",a red cat {number},art\n" for number in range(20_000))
    (tmp_path / "items.csv.gz").write_bytes(
        gzip.compress(f"image_path,description,category\n{rows}".encode())
    )
    assert len(read(tmp_path / "items.csv.gz", check_images=False)) == 20_000


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "items.xlsx",
            archive("xl/workbook.xml"),
            "found a ZIP archive, as .xlsx and .ods are: save",
        ),
        ("items.csv", archive("items.csv"), "found a ZIP archive"),
        (
            "items.xls",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
            r"found an old Excel file \(\.xls\)",
        ),
        ("items.csv", parquet(), r"found a Parquet file: give it a name that ends in \.parquet"),
        ("items.csv.gz", gzip.compress(parquet()), "found a Parquet file: give it a name"),
        (
            "items.parquet.gz",
            gzip.compress(parquet()),
            "found packed with gzip twice, or Parquet inside",
        ),
        ("items.parquet", TEXT.encode(), "cannot read it as Parquet"),
        ("items.parquet", archive("x"), "found a ZIP archive"),
        ("items.csv.bz2", bz2.compress(TEXT.encode()), "found packed with bzip2: unpack it first"),
        ("items.csv.xz", lzma.compress(TEXT.encode()), "found packed with xz: unpack it first"),
        ("items.arrow", feather(), "found an Arrow or Feather file: save it as Parquet"),
        (
            "items.csv",
            b"\n<!DOCTYPE html><html><body>Sign in",
            "found HTML or XML, perhaps the page of",
        ),
        ("items.json", b'[{"description": "a red cat"}]', "found JSON: save it as CSV or Parquet"),
        ("items.csv", b"\x7fELF\x02\x01\x01" + bytes(500), "found a binary file"),
    ],
    ids=name_of,
)
def test_another_kind_of_file_is_called_by_its_name(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    expected = complaint if "cannot" in complaint else f"{complaint}.*{ACCEPTED}"
    with pytest.raises(UserError, match=rf"{name}: {expected}"):
        read(tmp_path / name)


@pytest.mark.parametrize("cut", [20, 60])
def test_a_packed_table_that_was_cut_is_called_damaged(tmp_path: Path, cut: int) -> None:
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(TEXT.encode())[:cut])
    with pytest.raises(UserError, match=r"items\.csv\.gz: cannot read it, it is damaged: Compressed file"):
        read(tmp_path / "items.csv.gz")


def test_a_table_in_utf_16_that_was_cut_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes(TEXT.encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"items\.csv: cannot read it, it is damaged: .*truncated data"):
        read(tmp_path / "items.csv")


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_another_separator_is_called_by_its_name(tmp_path: Path, separator: str, name: str) -> None:
    (tmp_path / "items.csv").write_text(TEXT.replace(",", separator))
    with pytest.raises(UserError, match=rf"no column image_path.*This file is separated by {name}\."):
        read(tmp_path / "items.csv")


def test_a_file_without_line_ends_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.data.csv_records.MAX_LINE_CHARS", 1000)
    (tmp_path / "items.csv").write_text(TEXT + "x" * 1001)
    with pytest.raises(UserError, match=r"items\.csv: line 4 has 1,000 characters or more; is it a CSV\?"):
        read(tmp_path / "items.csv")


@pytest.mark.parametrize("column", ["image_path", "description", "category"])
def test_a_column_that_occurs_twice_is_refused(tmp_path: Path, column: str) -> None:
    (tmp_path / "items.csv").write_text(TEXT.replace("category\n", f"category,{column}\n"))
    with pytest.raises(UserError, match=rf"columns [123] and 4 are both named {column}\. Rename all but one"):
        read(tmp_path / "items.csv")


def test_a_column_of_parquet_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    names = [*COLUMNS, "category"]
    table = pa.table([*COLUMNS.values(), ["uncategorised"] * 2], names=names)
    pq.write_table(table, tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"2 columns are named category\. Rename all but one"):
        read(tmp_path / "items.parquet")


def test_a_column_that_is_not_used_may_occur_twice(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("note,note,image_path,description,category\n1,2,,a red cat,art\n")
    assert [item.text for item in read(tmp_path / "items.csv")] == ["a red cat"]


@pytest.mark.parametrize("name", ["items.csv", "items.parquet"])
def test_a_table_to_be_asked_about_needs_no_categories(tmp_path: Path, name: str) -> None:
    columns = {name: cells for name, cells in COLUMNS.items() if name != "category"}
    text = "image_path,description\n,a red Größe 中文\n,a blue cat\n"
    (tmp_path / name).write_bytes(text.encode() if name.endswith("csv") else parquet(**columns))
    items = read(tmp_path / name, needs_category=False)
    assert [(item.text, item.category) for item in items] == [(text, "") for text in COLUMNS["description"]]
    with pytest.raises(UserError, match="no column category"):
        read(tmp_path / name)


NO_WIDTH = ["\u200b", "\ufeff", "\u00ad", "\u2060", "\u200b \u200d"]


@pytest.mark.parametrize("name", ["items.csv", "items.parquet"])
@pytest.mark.parametrize("text", NO_WIDTH)
def test_a_text_is_one_where_the_tokenizer_finds_a_token(tmp_path: Path, name: str, text: str) -> None:
    if name.endswith("csv"):
        (tmp_path / name).write_text(TEXT + f",{text},art\n", encoding="utf-8")
    else:
        columns = {
            name: [*cells, cell]
            for (name, cells), cell in zip(COLUMNS.items(), ("", text, "art"), strict=True)
        }
        (tmp_path / name).write_bytes(parquet(**columns))
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.normalizer = normalizers.BertNormalizer()
    drops_them = Preprocessor(PREPROCESSOR.spec, tokenizer.to_str())
    with pytest.raises(UserError, match=r"1 of 3 rows [\s\S]*: the tokenizer finds nothing in '\\"):
        read_catalogue(tmp_path / name, labels=None, preprocessors=[drops_them])
    kept = read_catalogue(
        tmp_path / name, labels=None, preprocessors=[drops_them], skip_bad_rows=True, on_warning=str
    )
    assert len(kept) == 2
    bytewise = Tokenizer(
        models.BPE({char: n for n, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel()
    keeps_them = Preprocessor(PREPROCESSOR.spec, bytewise.to_str())
    assert len(read_catalogue(tmp_path / name, labels=None, preprocessors=[keeps_them])) == 3
    with pytest.raises(UserError, match="neither image nor text"):  # one of two models refuses it
        read_catalogue(tmp_path / name, labels=None, preprocessors=[keeps_them, drops_them])


def test_an_image_file_that_is_empty_is_not_taken_for_a_missing_image(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "items.csv").write_text("image_path,description,category\nempty.jpg,a red cat,art\n")
    (item,) = read(tmp_path / "items.csv", check_images=False)
    with pytest.raises(UserError, match=r"items\.csv: line 2: its image .*empty\.jpg is an empty file"):
        item.read_image()


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """Of a server that forbids everything."""

    class Forbids(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404 if "missing" in self.path else 403)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbids)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["items.csv", "items.parquet"])
def test_an_address_that_does_not_answer_is_not_called_a_missing_file(name: str, refusing_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match=rf"{name}: cannot read it: Cannot connect to host 127.*{port}"):
        read(f"http://127.0.0.1:{port}/{name}")
    with pytest.raises(UserError, match=rf"{name}: cannot read it: 403, message='Forbidden'"):
        read(f"{refusing_url}/{name}")
    with pytest.raises(UserError, match=rf"missing-{name}: cannot read it: No such file or directory"):
        read(f"{refusing_url}/missing-{name}")
