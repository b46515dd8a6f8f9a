"""The summary of a prepared data set, also saved as a stamp so that it is made only once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from diptych.data.splits import SHARES

STAMP_FILE = "prepared.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTable:
    """The result of one table of openclipart.toml."""

    directory: str
    num_items: Mapping[str, Mapping[str, int]]  # category -> split
    num_groups: int  # of near-duplicates; a single item is a group too
    num_without_text: int
    num_ambiguous: int  # left out: filed under several categories


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """The data of prepare_openclipart, new or already there."""

    tables: Mapping[str, PreparedTable]
    left_out: Mapping[str, str]  # drawing -> reason
    is_new: bool


def read_stamp(out: Path, fingerprint: str) -> Prepared | None:
    """The data in `out`, if it is complete and has this fingerprint."""
    try:
        stamp = msgspec.json.decode((out / STAMP_FILE).read_bytes(), type=_Stamp)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    csvs = [
        Path(table.directory, f"{split}.csv") for table in stamp.prepared.tables.values() for split in SHARES
    ]
    if stamp.fingerprint != fingerprint or not all(path.is_file() for path in csvs):
        return None
    return dataclasses.replace(stamp.prepared, is_new=False)


def remove_stamp(out: Path) -> None:
    """Called first: an interrupted preparation must not leave the previous stamp."""
    (out / STAMP_FILE).unlink(missing_ok=True)


def write_stamp(out: Path, fingerprint: str, prepared: Prepared) -> None:
    """Called last: the stamp means that the rest is complete."""
    (out / STAMP_FILE).write_bytes(msgspec.json.encode(_Stamp(fingerprint=fingerprint, prepared=prepared)))


def print_summary(prepared: Prepared, console: Console) -> None:
    """Counts by category and split, and what was left out."""
    for table in prepared.tables.values():
        console.print(_counts(table))
        num_items = sum(sum(counts.values()) for counts in table.num_items.values())
        console.print(
            f"{num_items:,} drawings in {table.num_groups:,} groups of near-duplicates; "
            f"{table.num_without_text:,} without text; "
            f"{table.num_ambiguous:,} left out, filed under several categories\n",
            highlight=False,
        )
    for drawing, reason in prepared.left_out.items():
        console.print(f"left out: {drawing}: {reason}", markup=False, highlight=False, soft_wrap=True)


def _counts(prepared: PreparedTable) -> Table:
    table = Table("category", title=prepared.directory, title_justify="left", show_footer=True)
    table.columns[0].footer = "all"
    for split in SHARES:
        total = sum(counts[split] for counts in prepared.num_items.values())
        table.add_column(split, footer=f"{total:,}", justify="right")
    for category, counts in prepared.num_items.items():
        table.add_row(category, *(f"{counts[split]:,}" for split in SHARES))
    return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stamp:
    fingerprint: str
    prepared: Prepared
