"""How long a call may take in all, and whether a failed request is sent again within that time.

Decides only; `_conversation.py` acts. Sending again is safe, because an inference changes nothing on the
server. It helps against failures that say "not now": no connection, a full queue, a server that stops or is
not ready. It never helps against bad input.

Retry libraries (tenacity, stamina) run their own sleep loop, once for threads and once for event loops, and
cannot cap retries across calls. What would remain of them here is one call of `random`.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time

from diptych_client._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    InvalidInput,
    ModelNotReady,
    Overloaded,
)


class Deadline:
    """Starts when it is made. Every wait of the call asks it how long it may still take."""

    def __init__(self, timeout_s: float) -> None:
        if not 0 < timeout_s < float("inf"):
            raise InvalidInput.refusing("timeout_s", repr(timeout_s), "a positive number of seconds")
        self.timeout_s = timeout_s
        self._started_s = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def remaining_s(self, request_id: str | None = None) -> float:
        """Seconds left, always positive. Raises DeadlineExceeded where there are none."""
        remaining_s = self.timeout_s - self.elapsed_s()
        if remaining_s <= 0:
            raise self.exceeded(request_id)
        return remaining_s

    def allows(self, pause_s: float) -> bool:
        """Whether time is left after a pause."""
        return self.elapsed_s() + pause_s < self.timeout_s

    def exceeded(self, request_id: str | None = None) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer within {self.timeout_s:g} s", request_id)


# A request that has waited in Triton's queue until its own deadline is UNAVAILABLE too, but comes as
# DeadlineExceeded; one that has met the server's limit there, with time left, as Overloaded.
RETRIED = (ConnectionFailed, ModelNotReady, Overloaded)


@dataclasses.dataclass(frozen=True)
class Retries:
    """Pauses have full jitter: from 0 to a limit that doubles (Brooker, "Exponential Backoff And Jitter").

    max_attempts   of one request, the first included; 1: no retries
    first_pause_s  the limit of the first pause
    last_pause_s   what the limit doubles up to
    budget         failures in a row, over all calls, after which half the budget is gone and retries stop
                   until enough answers have come; a server on its knees gets no more load from us
    refill         what one answer gives back: in the long run, one retry for every 1 / refill answers
                   (budget and refill work as in gRPC's retry throttling, gRFC A6)
    """

    max_attempts: int = 4
    first_pause_s: float = 0.1
    last_pause_s: float = 2.0
    budget: int = 50
    refill: float = 0.1

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidInput.refusing("retries", f"max_attempts={self.max_attempts}", "1 or more")

    def pause_limit_s(self, num_attempts: int) -> float:
        """The longest pause after that many attempts."""
        return min(self.last_pause_s, self.first_pause_s * 2.0 ** (num_attempts - 1))


class RetryBudget:
    """One for each client. Safe to share between threads."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._tokens = self._max_tokens = 2.0 * retries.budget
        self._lock = threading.Lock()

    def report_answer(self) -> None:
        if self._tokens < self._max_tokens:  # usually not: no lock on the way of ordinary calls
            with self._lock:
                self._tokens = min(self._max_tokens, self._tokens + self._retries.refill)

    def pause_s(
        self, error: DiptychError, num_attempts: int, deadline: Deadline, has_other_server: bool
    ) -> float | None:
        """How long to wait before the next attempt; None: there is to be none.

        Another server is asked at once, unless this one was merely busy: then the others may be too.
        """
        if not isinstance(error, RETRIED):
            return None
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            has_budget = self._tokens >= self._max_tokens / 2
        if num_attempts >= self._retries.max_attempts or not has_budget:
            return None
        moves_on = has_other_server and not isinstance(error, Overloaded)
        pause_s = 0.0 if moves_on else random.uniform(0, self._retries.pause_limit_s(num_attempts))
        return pause_s if deadline.allows(pause_s) else None
