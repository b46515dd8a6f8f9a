"""The start times of calls.

closed    each user sends its next call after the last one has ended. A stalled server then gets fewer calls,
          and the wait of later callers is not measured ("coordinated omission").
poisson   each user is one call a second at random times, like many independent callers. N users are a
          Poisson process of N calls a second.
uniform   each user sends one call a second, each with its own offset.

In the last two the times are fixed in advance, and calls start whether the last one has ended or not.
"""

from __future__ import annotations

import random
from collections.abc import Callable

CLOSED, POISSON, UNIFORM = "closed", "poisson", "uniform"
ARRIVALS = (CLOSED, POISSON, UNIFORM)
CALLS_PER_USER_AND_S = 1.0


class Schedule:
    """The planned starts of one user's calls, in seconds on the caller's clock."""

    def __init__(self, arrivals: str, *, now_s: float, source: random.Random) -> None:
        gaps: dict[str, Callable[[], float]] = {
            POISSON: lambda: source.expovariate(CALLS_PER_USER_AND_S),
            UNIFORM: lambda: 1 / CALLS_PER_USER_AND_S,
        }
        self._gap = gaps[arrivals]
        # A Poisson process has no memory, so its first gap is like any other.
        first_gap_s = self._gap() if arrivals == POISSON else source.random() / CALLS_PER_USER_AND_S
        self.next_start_s = now_s + first_gap_s

    def advance(self) -> None:
        """From the planned start, not from now: a late call must not reduce the rate."""
        self.next_start_s += self._gap()
