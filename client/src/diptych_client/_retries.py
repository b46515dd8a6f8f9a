"""The deadline of a call, and whether a failed request is sent again within it.

It only decides; `_exchange.py` acts. Sending again is safe, because an inference changes nothing on the
server. It helps if there is no connection, a full queue, or a server that stops or is not ready, never
against bad input.

Retry libraries (tenacity, stamina) run their own sleep loop and cannot limit retries across calls.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
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

# Threads cannot wait for centuries; eleven days are longer than any call.
LONGEST_TIMEOUT_S = 1e6


class Deadline:
    """The deadline of a call, from its creation. Every wait of the call is limited by it."""

    def __init__(self, timeout_s: float) -> None:
        if not is_number(timeout_s) or not 0 < timeout_s <= LONGEST_TIMEOUT_S:
            accepted = f"a positive number of seconds, at most {LONGEST_TIMEOUT_S:,.0f}"
            raise InvalidInput.refusing("timeout_s", repr(timeout_s), accepted)
        self.timeout_s = timeout_s
        self._started_s = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def remaining_s(self, request_id: str | None = None) -> float:
        """Seconds left, always positive. Raises DeadlineExceeded if there are none."""
        remaining_s = self.timeout_s - self.elapsed_s()
        if remaining_s <= 0:
            raise self.exceeded(request_id)
        return remaining_s

    def allows(self, pause_s: float) -> bool:
        """Whether time is left after a pause."""
        return self.elapsed_s() + pause_s < self.timeout_s

    def exceeded(self, request_id: str | None = None) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer within {self.timeout_s:g} s", request_id)


def is_number(value: object) -> bool:
    """Whether it is a number; True and NaN are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


# A request that waited in Triton's queue until its own deadline is also UNAVAILABLE, but becomes
# DeadlineExceeded; one that reached the server's limit, with time left, becomes Overloaded.
RETRIED = (ConnectionFailed, ModelNotReady, Overloaded)


# A failure that no other attempt at the same address can change: an untrusted certificate.
_PERMANENT = re.compile("certificate.verify.failed|is not in peer certificate", re.IGNORECASE)

DEFAULT_MAX_ATTEMPTS = 4


@dataclasses.dataclass(frozen=True)
class Retries:
    """Pauses have full jitter: from 0 to a limit that doubles (Brooker, "Exponential Backoff And Jitter").

    max_attempts   of one request, the first included; 1: no retries. None: four, and as many as the
                   deadline allows while the server is overloaded
    first_pause_s  limit of the first pause
    last_pause_s   largest limit of a pause
    budget         failures in a row, over all calls, after which half the budget is gone; 0: no retries. Then
                   requests that failed are not sent again, and those that an overloaded server refused wait
                   for last_pause_s, until enough answers have come
    refill         the part of the budget that one answer returns: in the long run, one retry for every
                   1 / refill answers (as in gRPC's retry throttling, gRFC A6)
    """

    max_attempts: int | None = None
    first_pause_s: float = 0.1
    last_pause_s: float = 2.0
    budget: int = 50
    refill: float = 0.1

    def __post_init__(self) -> None:
        is_count = self.max_attempts is None or (is_number(self.max_attempts) and self.max_attempts >= 1)
        if not is_count:
            raise InvalidInput.refusing(
                "retries", f"max_attempts={self.max_attempts!r}", "1 or more, or None"
            )
        for name in ("first_pause_s", "last_pause_s", "budget", "refill"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= LONGEST_TIMEOUT_S:
                raise InvalidInput.refusing("retries", f"{name}={value!r}", "a number, 0 or more")

    def pause_limit_s(self, num_attempts: int) -> float:
        """The longest pause after this number of attempts."""
        return min(self.last_pause_s, self.first_pause_s * 2.0 ** min(num_attempts - 1, 60))


class RetryBudget:
    """One for each client. Safe to share between threads."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._tokens = self._max_tokens = 2.0 * retries.budget
        self._lock = threading.Lock()

    def report_answer(self) -> None:
        if self._tokens < self._max_tokens:  # usually not, so ordinary calls take no lock
            with self._lock:
                self._tokens = min(self._max_tokens, self._tokens + self._retries.refill)

    def pause_s(
        self, error: DiptychError, num_attempts: int, deadline: Deadline, has_other_server: bool
    ) -> float | None:
        """Seconds to wait before the next attempt; None: do not retry.

        Another server is asked at once, unless this one was only busy: then the others may be too.
        """
        if not isinstance(error, RETRIED) or not self._retries.budget:
            return None
        if _PERMANENT.search(error.message) and not has_other_server:
            return None
        is_busy = isinstance(error, Overloaded)
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            has_budget = self._tokens >= self._max_tokens / 2
        max_attempts = self._retries.max_attempts
        if max_attempts is None and not is_busy:
            max_attempts = DEFAULT_MAX_ATTEMPTS
        if max_attempts is not None and num_attempts >= max_attempts:
            return None
        if not has_budget and not is_busy:
            return None
        return self._pause_s(error, num_attempts, deadline, has_other_server and not is_busy, has_budget)

    def _pause_s(
        self, error: DiptychError, num_attempts: int, deadline: Deadline, moves_on: bool, has_budget: bool
    ) -> float | None:
        limit_s = self._retries.pause_limit_s(num_attempts) if has_budget else self._retries.last_pause_s
        shortest_s = 0.0 if has_budget else limit_s / 2
        pause_s = 0.0 if moves_on else random.uniform(shortest_s, limit_s)
        if error.retry_after_s is not None and not moves_on:
            pause_s += error.retry_after_s
        return pause_s if deadline.allows(pause_s) else None
