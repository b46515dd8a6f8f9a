"""Shows the progress of slow work on stderr: a bar on a terminal, one plain line in a log file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

SLOW_S = 2.0

T = TypeVar("T")

console = Console(stderr=True)


def warn(message: str) -> None:
    """Show a message on stderr."""
    console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


class Advance(Protocol):
    """Moves a bar on. `status` is a short text beside it, such as the loss."""

    def __call__(self, amount: int, *, status: str = "") -> None: ...


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, *, is_bytes: bool = False) -> Iterator[Advance]:
    """Yields `advance`. Nothing is shown during the first second."""
    columns = (
        TextColumn("{task.description}", markup=False),  # it may hold the name of a file
        BarColumn(),
        DownloadColumn() if is_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    task = progress.add_task(what, total=total, status="")
    start_s, is_shown = time.monotonic(), False

    def advance(amount: int, *, status: str = "") -> None:
        nonlocal is_shown
        progress.update(task, advance=amount, status=status)
        if not is_shown and time.monotonic() - start_s > SLOW_S:
            is_shown = True
            progress.start()
            if progress.disable:
                console.print(f"{what} ...", markup=False, highlight=False, soft_wrap=True)

    try:
        yield advance
    finally:
        if is_shown:
            progress.stop()


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Iterate with a bar."""
    with progress_bar(what, total) as advance:
        for item in items:
            yield item
            advance(1)


def wait_for(futures: Sequence[Future[T]], what: str) -> list[T]:
    """The results in order. An error or Ctrl-C cancels the calls that have not started."""
    try:
        for future in track(as_completed(futures), what, len(futures)):
            future.result()
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return [future.result() for future in futures]
