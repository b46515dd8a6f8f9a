"""Follows tritonserver's log and passes its lines on; limits the file's size and repeated lines.

tritonserver logs a warning for every request that a full queue refuses. Without a limit, an hour of overload
fills the disk and hides important lines.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

POLL_S = 0.2
# The file is emptied above this size; its lines have been passed on.
MAX_LOG_BYTES = 16 * 2**20
WINDOW_S = 60.0
# In each window: lines of one kind that are passed on, and kinds that are counted separately.
NUM_SHOWN, MAX_KINDS = 5, 500
# The parts that differ between lines of one kind: W1123 18:08:55.312 7191 FILE.cc:123] "[request id: 7] ..."
VARIES = re.compile(r"(?<=^[IWEF])\d{4} [\d:.]+ \d+|\[request id: [^\]]*\]|0x[0-9a-f]+|\d+")


class Repeats:
    """Passes the first lines of each kind, counts the others, and reports the counts once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window_ends_s = clock() + WINDOW_S
        self._counts: dict[str, int] = {}
        self._latest: dict[str, str] = {}

    def pass_on(self, line: str) -> Iterator[str]:
        """The lines to show for this line: the counts if a window ends, and the line itself if it passes."""
        yield from self.due()
        kind = VARIES.sub("#", line)
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            kind = ""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= NUM_SHOWN:
            yield line
        else:
            self._latest[kind] = line

    def due(self) -> Iterator[str]:
        """The counts, if the window is over."""
        if self._clock() >= self._window_ends_s:
            yield from self.flush()

    def flush(self) -> Iterator[str]:
        """The counts so far, and a new window."""
        for kind, line in self._latest.items():
            num = self._counts[kind] - NUM_SHOWN
            what = "like it" if kind else "of other kinds"
            yield line if num == 1 else f"{line}  [this and {num - 1} more {what}, not shown]"
        self._counts, self._latest = {}, {}
        self._window_ends_s = self._clock() + WINDOW_S


class LogFollower:
    """A context manager: inside the `with`, a thread passes on what is added to a log.

    path           a file that is written in append mode
    say            receives a line; called by the thread
    is_shown       which lines are passed on
    from_start     also pass on what is already in the file
    max_bytes      the file is emptied above this; None: never, for another program's file
    """

    def __init__(
        self,
        path: Path,
        *,
        say: Callable[[str], None],
        is_shown: Callable[[str], bool],
        from_start: bool,
        max_bytes: int | None = MAX_LOG_BYTES,
    ) -> None:
        self._path, self._say, self._is_shown, self._max_bytes = path, say, is_shown, max_bytes
        self._file = path.open(encoding="utf-8", errors="replace")
        if not from_start:
            self._file.seek(0, os.SEEK_END)
        self._repeats = Repeats()
        self._begun = ""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log", daemon=True)

    def __enter__(self) -> LogFollower:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._show(self._file.read().splitlines(keepends=True))
        for line in (self._begun, *self._repeats.flush()):
            if line:
                self._say(line)
        self._file.close()

    def _follow(self) -> None:
        while not self._is_over.wait(POLL_S):
            self._show(self._file)
            for line in self._repeats.due():
                self._say(line)
            self._keep_small()

    def _show(self, parts: Iterable[str]) -> None:
        for part in parts:
            self._begun += part
            if self._begun.endswith("\n"):
                line, self._begun = self._begun.rstrip(), ""
                if self._is_shown(line):
                    for shown in self._repeats.pass_on(line):
                        self._say(shown)

    def _keep_small(self) -> None:
        if self._max_bytes is None:
            return
        with contextlib.suppress(OSError):  # the workspace may already be gone
            if self._path.stat().st_size > self._max_bytes:
                os.truncate(self._path, 0)
                self._file.seek(0)
