"""Categories that people take for one another, and those that no file can hold."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from diptych.data.catalogue import read_catalogue
from diptych.data.categories import look_alikes
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec, Preprocessor
from tests.helpers.repository_files import tiny_tokenizer

PREPROCESSOR = Preprocessor(PreprocessingSpec(image_size_px=32, max_tokens=16), tiny_tokenizer().to_str())


def write(directory: Path, categories: list[str]) -> Path:
    path = directory / "items.csv"
    rows = "".join(f',a red cat,"{category}"\n' for category in categories)
    path.write_text(f"image_path,description,category\n{rows}", encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize(
    ("common", "rare", "shown"),
    [
        (unicodedata.normalize("NFC", "Café"), unicodedata.normalize("NFD", "Café"), r"'Cafe\u0301'"),
        ("art", "Art", "'Art'"),
        ("art", "art\u200b", r"'art\u200b'"),
        ("t shirts", "t\u00a0shirts", r"'t\xa0shirts'"),
        ("t shirts", "t  shirts", "'t  shirts'"),
        ("2 piece", "\uff12 piece", r"'\uff12 piece'"),
    ],
)
def test_categories_that_look_alike_are_warned_about_by_name(
    tmp_path: Path, common: str, rare: str, shown: str
) -> None:
    told: list[str] = []
    path = write(tmp_path, [common, common, rare, "tools"])
    items = read_catalogue(path, labels=None, preprocessors=[PREPROCESSOR], on_warning=told.append)
    assert [item.category for item in items] == [common, common, rare, "tools"]
    (warning,) = told
    assert "Categories that look alike are different ones to the model; give them one spelling:" in warning
    assert "(2 items), " in warning
    assert f"{shown} (1 items)" in warning
    assert "tools" not in warning


def test_categories_that_differ_are_not_warned_about(tmp_path: Path) -> None:
    told: list[str] = []
    path = write(tmp_path, ["art", "arts", " art ", "tools", "größe", "grösse"])
    read_catalogue(path, labels=None, preprocessors=[PREPROCESSOR], on_warning=told.append)
    (warning,) = told
    assert "'größe'" in warning  # the same without regard to case
    assert "tools" not in warning
    assert look_alikes({"art": 1, "arts": 1, "tools": 1, "cafe": 1, "café": 1}) == []


def test_an_unknown_category_is_shown_beside_the_known_one_that_it_looks_like(tmp_path: Path) -> None:
    path = write(tmp_path, ["art", "Art\u200b", "boats"])
    with pytest.raises(UserError) as caught:
        read_catalogue(path, labels=["art", "tools"], preprocessors=[PREPROCESSOR])
    message = str(caught.value)
    assert r"= 'Art\u200b', which looks like 'art'" in message
    assert "line 4: unknown category: 'boats'\n" in message


@pytest.mark.parametrize("character", list("\n\r\x0b\x0c\x1c\x85\u2028\u2029\t\0"))
def test_a_category_with_a_line_break_or_another_control_character_is_a_bad_row(
    tmp_path: Path, character: str
) -> None:
    path = write(tmp_path, ["art", f"ar{character}t"])
    with pytest.raises(
        UserError,
        match=rf"1 of 2 rows .*\n  line 3: unusable category: 'ar.*t' holds U\+{ord(character):04X};",
    ):
        read_catalogue(path, labels=None, preprocessors=[PREPROCESSOR])


def test_words_of_languages_that_need_joiners_are_categories(tmp_path: Path) -> None:
    path = write(tmp_path, ["نی\u200cم", "क्\u200dष"])
    items = read_catalogue(path, labels=None, preprocessors=[PREPROCESSOR])
    assert [item.category for item in items] == ["نی\u200cم", "क्\u200dष"]
