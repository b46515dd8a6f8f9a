"""Records every call: each starts once and must end once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

import diptych_client
from diptych_client import DiptychError, InvalidInput, ModelNotReady, Overloaded
from diptych_serving.traffic import Call

ANSWERED, REFUSED, FAILED = "answered", "refused with a reason", "failed with a typed error"
WRONG, UNTYPED = "wrong answer", "failed without a type"
KINDS = (ANSWERED, REFUSED, FAILED, WRONG, UNTYPED)
REFUSALS = (InvalidInput, Overloaded, ModelNotReady)


class WrongAnswer(Exception):
    """An answer that is not the one that the repository's own files give."""


class Ledger:
    """Calls of all kinds of traffic. Safe to share between threads."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.num_begun = 0
        self.calls: list[Call] = []
        self._lock = threading.Lock()

    def enter(self, num_begun: int, calls: Sequence[Call]) -> None:
        """Calls of which as many have begun."""
        with self._lock:
            self.num_begun += num_begun
            self.calls += calls

    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_s

    def counts(self) -> Counter[tuple[str, str]]:
        """By (kind, name of the error's type; empty for answers)."""
        return Counter((kind_of(call), "" if call.is_answered else call.outcome) for call in self.calls)

    def events(self) -> list[tuple[float, str]]:
        """(seconds since the start, kind) of each call's end."""
        return [(call.end_s - self.began_s, kind_of(call)) for call in self.calls]

    def oddities(self) -> list[str]:
        """What is said about the calls that should not be."""
        return [f"{kind_of(call)}: {call.result}" for call in self.calls if kind_of(call) in (WRONG, UNTYPED)]

    def total(self, kind: str) -> int:
        return sum(kind_of(call) == kind for call in self.calls)

    @property
    def num_unaccounted(self) -> int:
        return self.num_begun - len(self.calls)


def kind_of(call: Call) -> str:
    """One of KINDS."""
    if call.is_answered:
        return ANSWERED
    if call.outcome == WrongAnswer.__name__:
        return WRONG
    error = getattr(diptych_client, call.outcome, None)
    if not (isinstance(error, type) and issubclass(error, DiptychError)):
        return UNTYPED
    return REFUSED if issubclass(error, REFUSALS) else FAILED
