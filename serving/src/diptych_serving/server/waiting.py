"""Reports what a start waits for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from diptych_serving.terminal import say

# Seconds before the first report, and between reports.
FIRST_S, EVERY_S = 10.0, 20.0


@contextlib.contextmanager
def says_what_it_waits_for(
    describe: Callable[[], str], first_s: float = FIRST_S, every_s: float = EVERY_S
) -> Iterator[None]:
    """While the block runs, a thread reports the time so far and the result of `describe`."""
    is_over = threading.Event()
    began_s = time.monotonic()

    def say_again_and_again() -> None:
        pause_s = first_s
        while not is_over.wait(pause_s):
            say(f"Not ready after {time.monotonic() - began_s:.0f} s: {describe()}.")
            pause_s = every_s

    thread = threading.Thread(target=say_again_and_again, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
