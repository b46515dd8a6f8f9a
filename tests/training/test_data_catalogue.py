"""Reading catalogues: what is accepted, and how every row that is not is reported."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.data.catalogue import labels_of, read_catalogue
from diptych.data.items import Item
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor
from tests.helpers.repository_files import tiny_tokenizer

PREPROCESSOR = Preprocessor(PreprocessingSpec(image_size_px=32, max_tokens=16), tiny_tokenizer().to_str())
HEADER = "image_path,description,category\n"


def write_csv(directory: Path, body: str | bytes, header: str = HEADER) -> Path:
    """A CSV beside one good picture, good.png."""
    Image.new("RGB", (8, 8), "red").save(directory / "good.png")
    path = directory / "items.csv"
    path.write_bytes(header.encode() + (body.encode() if isinstance(body, str) else body))
    return path


def read(path: Path, *, labels: list[str] | None = None, **options: Any) -> list[Item]:
    return read_catalogue(path, labels=labels, preprocessors=[PREPROCESSOR], **options)


def error_of(path: Path, labels: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read(path, labels=labels)
    return str(caught.value)


def test_reads_paths_relative_to_the_csv_and_absolute_ones(tmp_path: Path) -> None:
    path = write_csv(tmp_path, f"good.png,A red square,art\n{tmp_path}/good.png,Another,art\n")
    first, second = read(path)
    assert (first.line, first.text, first.category) == (2, "A red square", "art")
    assert first.image == second.image == str(tmp_path / "good.png")


def test_an_empty_cell_is_a_missing_modality(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "good.png,,art\n, words alone ,art\n")
    picture_only, words_only = read(path)
    assert picture_only.text == ""
    assert words_only.image is None
    assert words_only.read_image() == b""
    assert words_only.text == "words alone"


def test_columns_may_come_in_any_order_after_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "1,art,Grün,good.png\n", header="\ufeffid,category,description,image_path\n")
    (item,) = read(path, labels=["art"])
    assert item.text == "Grün"


def test_labels_are_unique_and_sorted(tmp_path: Path) -> None:
    path = write_csv(tmp_path, ",x,tools\n,y,animals\n,z,tools\n")
    assert labels_of(read(path)) == ["animals", "tools"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("gone.png,text,art", r"line 2: missing image file: .*gone\.png"),
        ("notes.png,text,art", r"line 2: unusable image: .*notes\.png: .*found 12 bytes in no known format"),
        ("empty.png,text,art", r"line 2: unusable image: .*empty\.png: .*found 0 bytes"),
        ("cut.png,text,art", r"line 2: unusable image: .*cut\.png: .*a damaged file"),
        (".,text,art", r"line 2: unreadable image file: .*Is a directory"),
        ("good.png,text,", r"line 2: empty category"),
        ("good.png,text,boats", r"line 2: unknown category: 'boats'\nKnown categories: art, tools\."),
        (",  ,art", r"line 2: neither image nor text"),
        ("good.png,text", r"line 2: wrong number of columns: 2, where the header has 3"),
        ("good.png,one, two,art", r"line 2: wrong number of columns: 4, where the header has 3"),
        (b"good.png,caf\xe9,art", r"line 2: invalid UTF-8: byte 0xe9"),
        ('good.png,"never closed,art', r"line 2: broken quoting: a quote is never closed"),
        (f"good.png,{'x' * 70_000},art", r"line 2: text too long: 70,000 bytes, at most 65,536"),
    ],
)
def test_each_kind_of_bad_row_is_named_with_what_was_found(
    tmp_path: Path, row: str | bytes, complaint: str
) -> None:
    path = write_csv(tmp_path, row)
    (tmp_path / "notes.png").write_text("not a pictur")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    with pytest.raises(UserError, match=rf"1 of 1 rows cannot be used: 1 [\s\S]*{complaint}"):
        read(path, labels=["art", "tools"])


def test_all_bad_rows_are_listed_under_one_summary(tmp_path: Path) -> None:
    bad = "".join(f"gone{i}.png,text,art\n" for i in range(120))
    message = error_of(write_csv(tmp_path, f"good.png,text,art\n{bad},,art\n"))
    assert "121 of 122 rows cannot be used: 120 missing image file, 1 neither image nor text\n" in message
    assert [f"  line {line}: " in message for line in range(3, 124)] == [True] * 121
    assert message.endswith("Correct them, or leave them out with --skip-bad-rows.")


def test_a_row_is_reported_by_the_line_where_it_begins(tmp_path: Path) -> None:
    path = write_csv(tmp_path, 'good.png,"two\nlines",art\n\ngone.png,"three\nmore\nlines",art\n,,art\n')
    message = error_of(path)
    assert "line 5: missing image file" in message
    assert "line 8: neither image nor text" in message


def test_one_broken_row_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = write_csv(tmp_path, b'good.png,"a"b,art\n,\xff,art\ngood.png,fine,art\n')
    reports: list[str] = []
    items = read(path, skip_bad_rows=True, on_warning=reports.append)
    assert [(item.line, item.text) for item in items] == [(4, "fine")]
    assert "2 of 3 rows cannot be used: 1 broken quoting, 1 invalid UTF-8" in reports[0]


def test_skipped_rows_are_still_reported_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_csv(tmp_path, "good.png,fine,art\ngone.png,text,art\n")
    assert len(read(path, skip_bad_rows=True)) == 1
    message = capsys.readouterr().err
    assert "line 3: missing image file" in message
    assert "They are left out." in message


def test_a_catalogue_without_one_usable_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"items\.csv: no usable row"):
        read(write_csv(tmp_path, ""))


def test_missing_columns_are_named_with_those_found_and_required(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "", header="image,description,category\n")
    with pytest.raises(
        UserError, match=r"no column image_path\. Found: image, description, category; required: image_path,"
    ):
        read(path)


def test_an_empty_file_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column image_path, description, category\. Found: nothing"):
        read(write_csv(tmp_path, "", header=""))


def test_a_catalogue_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: cannot read it: No such file or directory"):
        read(tmp_path / "gone.csv")
