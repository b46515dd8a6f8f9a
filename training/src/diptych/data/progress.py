"""Shows that something slow is under way, and stays silent about what is quick."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import TypeVar

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


def wait_for(futures: Sequence[Future[T]], what: str) -> list[T]:
    """The results in order. An error, or the user's Ctrl-C, cancels what has not begun."""
    try:
        with progress_bar(what, len(futures)) as advance:
            for future in as_completed(futures):
                future.result()
                advance(1)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return [future.result() for future in futures]


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, *, is_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields `advance(n)`. From the second second on: a bar on a terminal, one plain line in a log file."""
    console = Console(stderr=True)
    counter = DownloadColumn() if is_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), counter, TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    task = progress.add_task(what, total=total)
    start_s, is_shown = time.monotonic(), False

    def advance(amount: int) -> None:
        nonlocal is_shown
        progress.advance(task, amount)
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
