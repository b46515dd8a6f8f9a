"""Draws users' strings in figures: in fonts that have their letters, wrapped and cut to fit.

chart_style.py turns off `$` as mathematics.
"""

from __future__ import annotations

import contextlib
import functools
import unicodedata
import warnings
from collections.abc import Iterator

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

from diptych_serving.progress import warn

MISSING = "□"
MAX_LETTERS = 1000  # letters of one string; no figure has room for more
DPI = 288  # font size for measuring text
VARIATIONS = frozenset(map(chr, range(0xFE00, 0xFE10)))  # variation selectors of emoji
# Fonts whose glyphs are placeholders.
NOT_FONTS = ("Last Resort",)

_said: set[str] = set()  # letters that no font has


def fit(
    text: str,
    inches: float,
    *,
    size: float = 10,
    lines: int = 1,
    weight: str = "normal",
    is_svg: bool = False,
) -> str:
    """Wrap to a width; text that does not fit into the lines is cut, with an ellipsis.

    size    font size in points
    is_svg  keep letters that no font here has: the reader's browser has other fonts
    """
    rest = _on_one_line(text[:MAX_LETTERS]) if is_svg else drawable(text[:MAX_LETTERS])
    font = FontProperties(size=size, weight=weight)
    fitted: list[str] = []
    while rest:
        end = _num_that_fit(rest, inches, font)
        is_cut = end < len(rest) and len(fitted) + 1 == lines
        if is_cut:
            end = _num_that_fit(rest, inches - _inches("…", font), font)
        if end < len(rest):
            space = rest.rfind(" ", 0, end + 1)
            end = space if space > end // 2 else end  # a long word is split
        fitted.append(rest[:end].strip() + ("…" if is_cut else ""))
        rest = "" if is_cut else rest[end:].strip()
    return "\n".join(fitted)


def drawable(text: str) -> str:
    """One line, with a box for each letter that no font here has. Warns once for each."""
    text = _on_one_line(text)
    missing = set(text) - _drawn_letters() - {" "}
    if missing:
        missing -= _add_fonts_for(frozenset(missing))
    if missing:
        _say_missing(missing)
    return "".join(MISSING if letter in missing else letter for letter in text)


def _on_one_line(text: str) -> str:
    """Line breaks and runs of spaces become one space; invisible letters are removed."""
    shaped = (
        letter
        for letter in unicodedata.normalize("NFC", text)
        if letter.isspace()
        or (unicodedata.category(letter) not in ("Cc", "Cf", "Cs") and letter not in VARIATIONS)
    )
    return " ".join("".join(shaped).split())


def _num_that_fit(text: str, inches: float, font: FontProperties) -> int:
    """The number of letters at the start that fit; at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _inches(text[:middle], font) <= inches else (low, middle - 1)
    return low


def _inches(text: str, font: FontProperties) -> float:
    with without_glyph_warnings():
        width, _, _ = _renderer().get_text_width_height_descent(text, font, ismath=False)
    return width / DPI


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """For text that is drawn with the reader's font."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@functools.cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


# --- fonts ----------------------------------------------------------------------------------------------


def _drawn_letters() -> set[str]:
    """The letters of the font families that figures use."""
    paths = [
        font_manager.findfont(FontProperties(family=[family]))
        for family in matplotlib.rcParams["font.family"]
    ]
    return set().union(*(_letters_of(path) for path in paths))


@functools.cache
def _add_fonts_for(missing: frozenset[str]) -> frozenset[str]:
    """Let figures use installed fonts that have these letters. Returns the letters that are found."""
    found: set[str] = set()
    for name, path in _installed_fonts():
        new = (missing - found) & _letters_of(path)
        if new:
            found |= new
            matplotlib.rcParams["font.family"] = [*matplotlib.rcParams["font.family"], name]
        if found == missing:
            break
    return frozenset(found)


@functools.cache
def _installed_fonts() -> list[tuple[str, str]]:
    """(name, path) of upright fonts of normal weight, the sans-serif ones first.

    Matplotlib's own list lacks recently installed fonts.
    """
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            with contextlib.suppress(OSError, RuntimeError):
                font_manager.fontManager.addfont(path)
    fonts = {
        (entry.name, entry.fname)
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular", "book")
        if not entry.name.startswith(NOT_FONTS)
    }
    return sorted(fonts, key=lambda font: ("Sans" not in font[0], font))


@functools.cache
def _letters_of(path: str) -> frozenset[str]:
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()


def _say_missing(missing: set[str]) -> None:
    letters = "".join(sorted(missing - _said))
    if not letters:
        return
    _said.update(letters)
    warn(
        f"no font on this machine has {letters[:20]}: drawn as {MISSING}. "
        "Install one, such as Debian's fonts-noto-cjk, fonts-noto-core or fonts-symbola"
    )
