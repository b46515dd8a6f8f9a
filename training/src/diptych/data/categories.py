"""Finds category names that look alike. For a model they are different categories."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping

ACCEPTED = "no line break and no other control character"


def control_character(category: str) -> str | None:
    """The first character of a name that would break files and tables."""
    return next((char for char in category if unicodedata.category(char) in ("Cc", "Zl", "Zp")), None)


def look_alikes(counts: Mapping[str, int]) -> list[list[str]]:
    """Groups of names that differ only in case, Unicode form, spaces or invisible characters.

    counts   number of items by name
    returns  groups of two or more, in each the most frequent first
    """
    groups = defaultdict(list)
    for name, _ in Counter(counts).most_common():
        groups[_looks(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def nearest(category: str, known: Collection[str]) -> str | None:
    """A known name that this one looks like."""
    looks = _looks(category)
    return next((name for name in known if _looks(name) == looks), None)


def warning_on(counts: Mapping[str, int]) -> str:
    """A warning about look-alikes; empty if there are none."""
    lines = [
        f"  {', '.join(f'{show(name)} ({counts[name]:,} items)' for name in group)}"
        for group in look_alikes(counts)
    ]
    if not lines:
        return ""
    return "\n".join(
        ["Categories that look alike are different ones to the model; give them one spelling:", *lines]
    )


def show(name: str) -> str:
    """Quoted, with code points unless it is plain ASCII, so that look-alikes are visible."""
    return repr(name) if name.isascii() else f"{name!r} = {name!a}"


def _looks(name: str) -> str:
    visible = "".join(
        char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) not in ("Cf", "Cc")
    )
    return unicodedata.normalize("NFKC", " ".join(visible.casefold().split()))
