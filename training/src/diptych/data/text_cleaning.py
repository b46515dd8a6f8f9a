"""Makes one readable text from an author's title and description."""

from __future__ import annotations

import html
import re
from collections.abc import Collection

EMAIL = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
URL = r"(?:https?://|www\.)\S+"
TAG_OR_COMMENT = r"<!--.*?-->|</?[a-zA-Z][^<>]*>"
# "Clipart by Nicu Buculei - pear" is the title of a whole set of fruit; it is true only of pear.svg.
SET_TITLE = re.compile(r"clip ?art by (?P<author>.+?) - (?P<file_stem>.+)", re.IGNORECASE)
BOILERPLATE = [
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"\(?\b(?:e-?mail|contact)\b\s*:\s*{EMAIL}\)?",
        EMAIL,
        URL,
        r"\bclip ?-?art by [^.,;()]+\.?",
        r"\b(?:created|made|drawn) (?:with|in|using)(?: the)? (?:inkscape|sodipodi)\b\.?",
        r"\bcreative commons public domain\b",
        r"\bpublic domain dedication\b",
        r"this work is hereby released into the public domain.*",
        r"\b(?:derivative|derived) (?:of|from) abiclipart\b\.?",
        r"\bHASH\(0x[0-9a-f]+\)",
        r"\bclip ?art\b",
        r"\.svg\b",
    )
]


def compose_text(title: str, description: str, *, file_stem: str, useless: Collection[str]) -> str:
    """Title and description as one text; empty if neither describes the image."""
    clean_title = _drop_useless(clean(_own_title(unescape(title), file_stem)), useless)
    clean_description = _drop_useless(clean(description), useless)
    if _folded(clean_description).startswith(_folded(clean_title)):
        return clean_description
    if _folded(clean_description) in _folded(clean_title):
        return clean_title
    stop = "" if clean_title.endswith((".", "!", "?")) else "."
    return f"{clean_title}{stop} {clean_description}"


def clean(text: str) -> str:
    """Unescape, drop tags, addresses and boilerplate, collapse white space."""
    text = re.sub(TAG_OR_COMMENT, " ", unescape(text), flags=re.DOTALL)
    for pattern in BOILERPLATE:
        text = pattern.sub(" ", text)
    text = re.sub(r"\(\s*\)", " ", text.replace("_", " "))
    return " ".join(text.split()).strip(" -:;,")


def unescape(text: str) -> str:
    """Undo repeated escaping, and UTF-8 that was once read as Latin-1."""
    while (unescaped := html.unescape(text)) != text:
        text = unescaped
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _own_title(title: str, file_stem: str) -> str:
    match = SET_TITLE.fullmatch(" ".join(title.split()))
    if not match:
        return title
    return file_stem if match["file_stem"].casefold() == file_stem.casefold() else ""


def _drop_useless(text: str, useless: Collection[str]) -> str:
    has_word = re.search(r"[^\W\d_]{2}", text)
    return text if has_word and _folded(text) not in useless else ""


def _folded(text: str) -> str:
    return text.casefold().rstrip(".")
