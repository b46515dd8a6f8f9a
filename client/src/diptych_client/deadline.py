"""One total limit for one call, however many messages the call takes."""

from __future__ import annotations

import time
from typing import Optional

from diptych_client.errors import DeadlineExceeded, InvalidInput


class Deadline:
    """Starts when it is made. Every wait of the call asks it how long it may still take."""

    def __init__(self, timeout_s: float) -> None:
        if not 0 < timeout_s < float("inf"):
            raise InvalidInput.refusing("timeout_s", repr(timeout_s), "a positive number of seconds")
        self.timeout_s = timeout_s
        self._started_s = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def remaining_s(self, request_id: Optional[str] = None) -> float:
        """Seconds left, always positive. Raises DeadlineExceeded where there are none."""
        remaining_s = self.timeout_s - self.elapsed_s()
        if remaining_s <= 0:
            raise self.exceeded(request_id)
        return remaining_s

    def allows(self, pause_s: float) -> bool:
        """Whether time is left after a pause."""
        return self.elapsed_s() + pause_s < self.timeout_s

    def exceeded(self, request_id: Optional[str] = None) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer within {self.timeout_s:g} s", request_id)
