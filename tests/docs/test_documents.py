"""The documents: each link leads to a file and a heading that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.documents import ROOT, documents

LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(document: Path) -> set[str]:
    """The headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", documents())
def test_every_link_leads_somewhere(name: str) -> None:
    document = ROOT / name
    broken = []
    for link in LINK.finditer(document.read_text("utf-8")):
        target = document.parent / link[1] if link[1] else document
        is_heading_there = not link[2] or (target.suffix == ".md" and link[2] in anchors(target))
        if not target.exists() or not is_heading_there:
            broken.append(link[0])
    assert broken == []
