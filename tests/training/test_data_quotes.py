"""Broken quotes in a CSV: what they swallow is counted as lost, and nothing in them becomes an item."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from diptych.data.catalogue import read_catalogue
from diptych.data.csv_records import split_records
from diptych.data.items import Item
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor
from tests.helpers.repository_files import tiny_tokenizer

PREPROCESSOR = Preprocessor(PreprocessingSpec(image_size_px=32, max_tokens=16), tiny_tokenizer().to_str())
HEADER = "image_path,description,category\n"
GOOD = ",a red cat,art\n"


def read(directory: Path, body: str, header: str = HEADER) -> tuple[list[Item], str]:
    """(items, all that is told about the others)"""
    (directory / "items.csv").write_text(header + body, newline="")
    told: list[str] = []
    items = read_catalogue(
        directory / "items.csv",
        labels=None,
        preprocessors=[PREPROCESSOR],
        skip_bad_rows=True,
        on_warning=told.append,
    )
    return items, "\n".join(told)


def test_all_lines_that_a_quote_swallows_which_is_never_closed_are_lost_and_named(tmp_path: Path) -> None:
    items, told = read(tmp_path, 10 * GOOD + 'a.png,"12 inch ruler,art\n' + 50 * GOOD)
    assert len(items) == 10
    assert "51 of 61 rows cannot be used: 51 broken quoting" in told
    assert "lines 12 to 62: broken quoting: a quote is never closed; all 51 lines are lost" in told


def test_without_skipping_they_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(HEADER + GOOD + ',"never,art\n' + GOOD)
    with pytest.raises(UserError, match=r"2 of 3 rows cannot be used[\s\S]*lines 3 to 4: broken quoting"):
        read_catalogue(tmp_path / "items.csv", labels=None, preprocessors=[PREPROCESSOR])


@pytest.mark.parametrize(
    ("broken", "num_lines"),
    [
        (',"He said "hi" to me\na.png,not a row,x\nend",art\n', 3),
        (',"He said "hi" to me\n\na.png,not a row,x\n\n,another,x\nend",art\n', 6),
        (',"a 12" ruler",art\n', 1),
        (',"a 12"ruler,art\n', 1),
        (',"He said "hi", then left",art\n', 1),
        (',"12 inch ruler,art\n,"a nice, red cat",art\n', 2),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_no_line_of_a_broken_cell_becomes_an_item_and_the_next_row_does(
    tmp_path: Path, broken: str, num_lines: int, line_end: str
) -> None:
    items, told = read(tmp_path, (GOOD + broken + GOOD).replace("\n", line_end), HEADER)
    assert [(item.line, item.text) for item in items] == [(2, "a red cat"), (3 + num_lines, "a red cat")]
    place = "line 3" if num_lines == 1 else f"lines 3 to {2 + num_lines}"
    assert f"  {place}: broken quoting" in told
    assert f"{num_lines} of {num_lines + 2} rows cannot be used" in told


def test_a_quote_that_is_closed_by_chance_is_warned_about(tmp_path: Path) -> None:
    """By the rules of CSV these are ten rows and one of 31 lines."""
    items, told = read(tmp_path, 10 * GOOD + ',"12 inch ruler,art\n' + 29 * GOOD + ',14",art\n' + GOOD)
    assert [item.line for item in items] == [*range(2, 13), 43]
    assert "a quote may be missing" in told
    assert "lines 12 to 42: one row, a cell of " in told


def test_a_quote_that_swallows_a_few_rows_is_warned_about(tmp_path: Path) -> None:
    swallowed, told = read(tmp_path, ',"12 inch ruler,art\n' + 3 * GOOD + ',14",art\n' + GOOD)
    assert len(swallowed) == 2
    assert "a quote may be missing" in told
    assert "lines 2 to 6: one row, a cell of " in told


def test_a_description_of_a_few_lines_is_no_cause_for_a_warning(tmp_path: Path) -> None:
    items, told = read(tmp_path, ',"A cat.\nIt is red, and large.\n\nIt says ""meow"".",art\n' + GOOD)
    assert len(items) == 2
    assert told == ""


@pytest.mark.parametrize("num_lines", [2, 50])
def test_a_cell_that_is_improbably_long_is_warned_about(tmp_path: Path, num_lines: int) -> None:
    cell = "\n".join(["a red cat " * (2000 // num_lines)] * num_lines)
    _, told = read(tmp_path, f',"{cell}",art\n' + GOOD)
    assert f"lines 2 to {1 + num_lines}: one row, a cell of {len(cell):,} characters" in told


def test_a_huge_cell_of_a_column_that_is_not_used_harms_nothing(tmp_path: Path) -> None:
    header = "id,image_path,description,category\n"
    rows = (
        f"{'x' * 140_000},,a red cat,art\n" + f'"{"y, " * 100_000}",,a red cat,art\n' + "1,,a blue cat,art\n"
    )
    items, told = read(tmp_path, rows, header)
    assert [item.text for item in items] == ["a red cat", "a red cat", "a blue cat"]
    assert told == ""


def test_a_header_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1 names the columns, and cannot be read: a quote is never"):
        read(tmp_path, GOOD, 'image_path,"description,category\n')


CORRECT = [
    'a,b,c\n1,"x\ny",3\n',
    'a,b\n"",""\n"""",","\n',
    'a\n"""x"""\n""""""\n',
    '"a","b"\n"1,2",3"4\n5" nail,"6"\n',
    'a,b\n"x",\n,"y"\n"1""","2"""',
    'a,b\r\n"x\r\ny",2\r\n\r\n3,4',
    'a,b\n "x",y\n',
]


@pytest.mark.parametrize("text", CORRECT)
def test_a_correct_file_is_read_as_by_the_standard_library(text: str) -> None:
    lines = io.StringIO(text, newline="")
    records = list(split_records(iter(lines.readline, "")))
    assert [record.cells for record in records] == [
        row for row in csv.reader(io.StringIO(text, newline="")) if row
    ]
    assert [record.fault for record in records] == [""] * len(records)


def test_every_table_that_the_standard_library_writes_is_read_back() -> None:
    chosen = random.Random(0)
    for _ in range(300):
        rows = [
            ["".join(chosen.choices('ab,"\n\r', k=chosen.randrange(1, 9))) for _ in range(3)]
            for _ in range(5)
        ]
        file = io.StringIO(newline="")
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
        file.seek(0)
        assert [record.cells for record in split_records(iter(file.readline, ""))] == rows
