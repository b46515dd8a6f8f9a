"""Turns the signals that ask a program to end into an exception, so that it can clean up."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

# Ctrl-C; what `kill`, containers and service managers send; a terminal or an SSH connection that closes.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asks us to stop. Not an Exception, so that no handler treats it as an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    def __str__(self) -> str:
        return signal.Signals(self.signum).name

    @property
    def status(self) -> int:
        """The exit status that a shell reports for this signal."""
        return 128 + self.signum


@contextlib.contextmanager
def signals_raise_stopped(*, second_kills: bool = False) -> Iterator[None]:
    """Inside the block the first signal raises Stopped, and later ones do nothing.

    SIGHUP stays ignored if the caller ignores it, as `nohup` does.
    second_kills  a second SIGINT or SIGTERM ends the process at once, for work that may be left half done
    """

    def raise_stopped(signum: int, _: FrameType | None) -> None:
        for each in SIGNALS:  # by default a second signal must not interrupt the cleanup
            is_deadly = second_kills and each != signal.SIGHUP
            signal.signal(each, signal.SIG_DFL if is_deadly else signal.SIG_IGN)
        raise Stopped(signum)

    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum in listened_to():
        signal.signal(signum, raise_stopped)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def end_in_order() -> None:
    """For the main thread of a program: SIGTERM and SIGHUP end it as `sys.exit` does.

    A second signal does not interrupt the end. SIGINT is Python's KeyboardInterrupt already.
    """
    for signum in listened_to():
        if signum != signal.SIGINT:
            signal.signal(signum, _exit)


def _exit(signum: int, _: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + signum)


def listened_to() -> list[signal.Signals]:
    """SIGNALS without a SIGHUP that is ignored."""
    return [
        signum
        for signum in SIGNALS
        if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN
    ]
