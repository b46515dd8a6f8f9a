"""When calls start.

closed    each user sends its next call when the last one has ended. A server that stalls is then sent less,
          and the wait of those who would have come meanwhile is never measured ("coordinated omission").
poisson   each user stands for one call a second, at random instants: what many independent callers look
          like. Users add up: N of them are one Poisson process of N calls a second.
uniform   each user sends one call a second on the dot, at an offset of its own.

In the latter two the instants are fixed beforehand and calls start then, whether the last has ended or not.
"""

from __future__ import annotations

import random
from collections.abc import Callable

CLOSED, POISSON, UNIFORM = "closed", "poisson", "uniform"
ARRIVALS = (CLOSED, POISSON, UNIFORM)
CALLS_PER_USER_AND_S = 1.0


class Schedule:
    """The intended starts of one user's calls, in seconds on the caller's clock."""

    def __init__(self, arrivals: str, *, now_s: float, source: random.Random) -> None:
        gaps: dict[str, Callable[[], float]] = {
            POISSON: lambda: source.expovariate(CALLS_PER_USER_AND_S),
            UNIFORM: lambda: 1 / CALLS_PER_USER_AND_S,
        }
        self._gap = gaps[arrivals]
        # A Poisson process has no memory: its first gap is like any other.
        first_gap_s = self._gap() if arrivals == POISSON else source.random() / CALLS_PER_USER_AND_S
        self.next_start_s = now_s + first_gap_s

    def advance(self) -> None:
        """From the intended start, not from now: being late once must not thin the arrivals out."""
        self.next_start_s += self._gap()
