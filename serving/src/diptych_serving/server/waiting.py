"""Says what a start waits for, while it waits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from diptych_serving.terminal import say

# When a start that takes longer says it first, and how often again.
FIRST_S, EVERY_S = 10.0, 20.0


@contextlib.contextmanager
def says_what_it_waits_for(
    describe: Callable[[], str], first_s: float = FIRST_S, every_s: float = EVERY_S
) -> Iterator[None]:
    """While the block runs, a thread says how long that has been, and what `describe` answers then."""
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
