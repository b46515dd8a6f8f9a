"""One release at a time: two that moved the same pins would undo one another's work."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from diptych.errors import UserError


@contextlib.contextmanager
def only_one(repository: Path) -> Iterator[None]:
    """Hold the repository while the block runs. Raises UserError where another process or thread has it.

    The lock is on the directory itself: nothing is written, and the kernel drops it with whoever holds it.
    """
    try:
        directory = os.open(repository, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{repository}: cannot open it ({error.strerror})") from None
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{repository}: another release or export is changing it; try again when that is done"
            ) from None
        yield
    finally:
        os.close(directory)
