"""A lock on a repository: two releases at once would overwrite each other's changes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diptych_serving.errors import UserError

POLL_S = 0.1


@contextlib.contextmanager
def only_one(
    repository: Path, wait_s: float = 0.0, on_wait: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Hold the repository while the block runs. Raises UserError if another process or thread holds it.

    The lock is on the directory itself: nothing is written, and the kernel releases it when its holder ends.
    wait_s   how long to wait for the holder to finish
    on_wait  is called once, with a message that names the holder
    """
    try:
        directory = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{repository}: cannot open it ({error.strerror})") from None
    try:
        gives_up_at_s = time.monotonic() + wait_s
        has_told = False
        while not _try_to_hold(directory):
            busy = f"{repository}: another release or export is changing it{_holder(directory)}"
            if time.monotonic() >= gives_up_at_s:
                raise UserError(f"{busy}; try again when that is done")
            if on_wait and not has_told:
                on_wait(f"{busy}. Waiting for it, {wait_s:.0f} s at most.")
                has_told = True
            time.sleep(POLL_S)
        yield
    finally:
        os.close(directory)


def _try_to_hold(directory: int) -> bool:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(directory: int) -> str:
    """The process that holds the lock, as far as this machine's /proc/locks says."""
    inode = os.fstat(directory).st_ino
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text("utf-8").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode and int(fields[4]) > 0:
                return f" (process {fields[4]})"
    return ""
