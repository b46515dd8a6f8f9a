"""Keeps what became of every call: each begins once and must end once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from diptych_client import Answer, DiptychError, InvalidInput, ModelNotReady, Overloaded

ANSWERED, REFUSED, FAILED = "answered", "refused with a reason", "failed with a typed error"
WRONG, UNTYPED = "wrong answer", "failed without a type"
KINDS = (ANSWERED, REFUSED, FAILED, WRONG, UNTYPED)
REFUSALS = (InvalidInput, Overloaded, ModelNotReady)


class Ledger:
    """Safe to share between threads.

    counts  by (kind, name of the error's type; empty for answers)
    events  (seconds since the start, kind), in the order of their ends
    """

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.num_begun = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.events: list[tuple[float, str]] = []
        self.oddities: list[str] = []
        self._lock = threading.Lock()

    def account(self, call: Callable[[], Answer], is_right: Callable[[Answer], bool]) -> None:
        """Make a call and enter how it ended."""
        self.begin()
        try:
            answer = call()
        except DiptychError as error:
            self.end_with_error(error)
        except Exception as error:
            self.end(UNTYPED, type(error).__name__, repr(error))
        else:
            self.end_with_answer(answer, is_right)

    def begin(self) -> None:
        with self._lock:
            self.num_begun += 1

    def end_with_answer(self, answer: Answer, is_right: Callable[[Answer], bool]) -> None:
        if is_right(answer):
            self.end(ANSWERED, "")
        else:
            self.end(WRONG, "", f"{answer.label} {answer.probabilities}")

    def end_with_error(self, error: DiptychError) -> None:
        self.end(REFUSED if isinstance(error, REFUSALS) else FAILED, type(error).__name__)

    def end(self, kind: str, error: str, oddity: str = "") -> None:
        with self._lock:
            self.counts[kind, error] += 1
            self.events.append((self.elapsed_s(), kind))
            if oddity:
                self.oddities.append(f"{kind}: {oddity}")

    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_s

    def total(self, kind: str) -> int:
        return sum(count for (counted, _), count in self.counts.items() if counted == kind)

    @property
    def num_unaccounted(self) -> int:
        return self.num_begun - self.counts.total()
