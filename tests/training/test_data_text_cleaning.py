"""From what authors typed, and what is in their SVG files, to one readable text."""

from pathlib import Path

import pytest

from diptych.data.svg_metadata import read_title_and_description
from diptych.data.text_cleaning import clean, compose_text

SVG = """<?xml version="1.0"?>
<!DOCTYPE svg [<!ENTITY secret "expanded">]>
<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/"
     xmlns:dc="http://purl.org/dc/elements/1.1/">
<title>Of the file</title>
<metadata>{metadata}</metadata>
<path d="M0,0"/></svg>"""


def read(tmp_path: Path, text: str) -> tuple[str, str]:
    (tmp_path / "a.svg").write_text(text, "utf-8")
    return read_title_and_description(tmp_path / "a.svg")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Salt &amp;amp; pepper", "Salt & pepper"),
        ("L&Atilde;&copy;zard", "Lézard"),
        ("jean.victor.balin@gmail.com", ""),
        ("Telefono (email: frollandin@email.it)", "Telefono"),
        ('<!-- CC --> <a rel="license" href="http://x.org/">A phone</a>', "A phone"),
        ("see http://openclipart.org/x?y=1 now", "see now"),
        ("US Capitol Building Clipart Style", "US Capitol Building Style"),
        ("A lamp. Clip art by Nicu Buculei.", "A lamp."),
        ("bird of peace. Created with The Inkscape", "bird of peace."),
        ("half_egg\n  bw", "half egg bw"),
        ("HASH(0x850c64c)", ""),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
    ],
)
def test_cleaning_keeps_what_is_about_the_picture(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("title", "description", "text"),
    [
        ("Pizza", "A slice with cheese", "Pizza. A slice with cheese"),
        ("Don't panic!", "Green creature", "Don't panic! Green creature"),
        ("Robot", "robot.", "robot."),
        ("Hot Dog (B and W)", "Hot Dog", "Hot Dog (B and W)"),
        ("Pizza", "", "Pizza"),
        ("Untitled", "A tree", "A tree"),
        ("Unnamed", ":)", ""),
        ("Clipart by Nicu Buculei - pear", "", "pear"),
        ("Clipart by Nicu Buculei - apple", "", ""),
    ],
)
def test_title_and_description_become_one_text(title: str, description: str, text: str) -> None:
    composed = compose_text(title, description, file_stem="pear", useless={"untitled", "unnamed"})
    assert composed == text


def test_the_authors_name_is_not_the_title(tmp_path: Path) -> None:
    metadata = """<cc:Work><dc:creator><cc:Agent><dc:title>Jane</dc:title></cc:Agent></dc:creator>
        <dc:title>A cat</dc:title><dc:description>It &amp;amp; its tail</dc:description>
        <dc:subject>animal</dc:subject></cc:Work>"""
    assert read(tmp_path, SVG.format(metadata=metadata)) == ("A cat", "It &amp; its tail")


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    metadata = "<cc:Work><dc:title>A &secret; cat</dc:title></cc:Work>"
    assert read(tmp_path, SVG.format(metadata=metadata)) == ("A  cat", "")


def test_a_file_that_breaks_off_keeps_what_was_read(tmp_path: Path) -> None:
    svg = SVG.format(metadata="<cc:Work><dc:title>A cat</dc:title><dc:description>Its")
    assert read(tmp_path, svg[: svg.index("Its") + 3]) == ("A cat", "Its")


def test_an_empty_work_before_the_real_one_is_passed_over(tmp_path: Path) -> None:
    metadata = "<cc:Work><dc:title/></cc:Work><cc:Work><dc:title>A cat</dc:title></cc:Work>"
    assert read(tmp_path, SVG.format(metadata=metadata)) == ("A cat", "")


def test_a_file_that_is_no_xml_has_no_title(tmp_path: Path) -> None:
    assert read(tmp_path, "binary rubbish") == ("", "")
