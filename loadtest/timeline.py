"""The counts of each second of a run, which can be added over worker processes.

A call belongs to the second of its planned start; `ended_well` counts in the second of its end. Seconds are
of the wall clock, so machines that generate load together need clocks that agree to a second.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass
class Second:
    """offered        calls planned to start
    missed         of these, not started: too many were in flight
    late           of these, started late by the generator
    failed         of these, ended wrongly
    ended_well     calls that ended correctly in this second
    latencies_ms   number of correct calls by latency, to three digits
    generator_cpu  of the busiest generating process, as a share of one core
    """

    offered: int = 0
    missed: int = 0
    late: int = 0
    failed: int = 0
    ended_well: int = 0
    latencies_ms: collections.Counter[float] = dataclasses.field(default_factory=collections.Counter)
    generator_cpu: float = 0.0

    def add(self, other: Second) -> None:
        self.offered += other.offered
        self.missed += other.missed
        self.late += other.late
        self.failed += other.failed
        self.ended_well += other.ended_well
        self.latencies_ms.update(other.latencies_ms)
        self.generator_cpu = max(self.generator_cpu, other.generator_cpu)


class Timeline:
    """Seconds by their number on the wall clock."""

    def __init__(self) -> None:
        self._seconds: collections.defaultdict[int, Second] = collections.defaultdict(Second)

    def record_call(self, *, start_s: float, latency_ms: float, is_late: bool, is_good: bool) -> None:
        second = self._seconds[int(start_s)]
        second.offered += 1
        second.late += is_late
        second.failed += not is_good
        if is_good:
            second.latencies_ms[float(f"{latency_ms:.3g}")] += 1
            self._seconds[int(start_s + latency_ms / 1000)].ended_well += 1

    def record_missed(self, *, start_s: float) -> None:
        second = self._seconds[int(start_s)]
        second.offered += 1
        second.missed += 1

    def record_generator(self, *, now_s: float, cpu: float) -> None:
        second = self._seconds[int(now_s)]
        second.generator_cpu = max(second.generator_cpu, cpu)

    def between(self, start_s: float, end_s: float) -> list[Second]:
        """The whole seconds in between, including empty ones."""
        return [self._seconds.get(number) or Second() for number in range(math.ceil(start_s), int(end_s))]

    def take(self) -> list[dict[str, Any]]:
        """Remove and return everything so far, for a message to the master."""
        taken, self._seconds = self._seconds, collections.defaultdict(Second)
        return [
            {**vars(second), "number": number, "latencies_ms": list(second.latencies_ms.items())}
            for number, second in taken.items()
        ]

    def merge(self, taken: Iterable[Mapping[str, Any]]) -> None:
        """Add what a worker's `take` has returned."""
        for entry in taken:
            fields = dict(entry)
            number = fields.pop("number")
            latencies = collections.Counter(dict(map(tuple, fields.pop("latencies_ms"))))
            self._seconds[number].add(Second(**fields, latencies_ms=latencies))
