"""The versions of a repository as a table."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from diptych_serving.release.control import Control
from diptych_serving.repository.layout import (
    describe_labels,
    held_versions,
    loaded_versions,
    read_manifest,
    serving_version,
)

# With the smallest readable width of each: 80 columns in total, with a run's name of 12 letters.
COLUMNS = {
    "version": 7,
    "state": 6,
    "exported": 10,
    "run": 1,
    "accuracy": 8,
    "precision": 9,
    "commit": 7,
    "labels": 6,
}


def release_table(repository: Path, control: Control | None = None) -> Table:
    """The oldest version first.

    control  a server to ask for its loaded versions; None: take them from the configs
    """
    serving, loaded = serving_version(repository), set(loaded_versions(repository))
    if control is not None:
        serving, loaded = control.serving_version() or 0, control.loaded_versions()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column, min_width in COLUMNS.items():
        # In a narrow terminal cells are folded, never cut; a run's name is never split.
        table.add_column(column, min_width=min_width, overflow="fold", no_wrap=column == "run")
    served = read_manifest(repository, serving)["labels"] if serving else []
    for version in held_versions(repository):
        manifest = read_manifest(repository, version)
        state = "serves" if version == serving else "loaded" if version in loaded else ""
        test = (manifest["run"]["test"] or {}).get("both", {}).get("accuracy")
        change = describe_labels(served, manifest["labels"])
        table.add_row(
            str(version),
            state,
            manifest["created"][:16].replace("T", " "),
            manifest["run"]["name"],
            "" if test is None else f"{test:.3f}",
            " ".join(sorted(set(manifest["precision"].values()))),
            (manifest["git_commit"] or "")[:7],
            f"{len(manifest['labels'])}" + (f": {change}" if change else ""),
        )
    return table
