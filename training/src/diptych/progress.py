"""Progress on anything that takes more than two seconds, on stderr, so that output stays clean."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True)


def track(items: Collection[T], title: str) -> Iterator[T]:
    """Iterate with a bar."""
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(items), status="")
        for item in items:
            yield item
            progress.advance(task)


def progress_bar() -> Progress:
    """A bar with a number beside it: `progress.update(task, status="loss 0.53")`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[status]}"),
        console=console,
    )
