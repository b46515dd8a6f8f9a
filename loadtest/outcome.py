"""The result of each phase, whether the generator was fast enough, and the knee."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from loadtest.objectives import Objectives
from loadtest.plan import Phase
from loadtest.timeline import Second, Timeline

# Above this share of a core a process measures its own queue. Locust warns at the same value.
GENERATOR_CPU_LIMIT = 0.9
# More late calls than this move the p99.
LATE_SHARE_LIMIT = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One phase, without its first seconds (--settle-s).

    answered_per_s   calls that ended correctly, including refused corrupt inputs
    error_share      share of the offered calls that ended wrongly or were missed
    p50_ms ...       latency of calls that ended correctly; NaN if there are none
    generator_cpu    of the busiest generating process, as a share of one core, mean of the phase
    late_share       share of the offered calls that the generator started late
    """

    phase: Phase
    num_seconds: int
    num_offered: int
    num_missed: int
    offered_per_s: float
    answered_per_s: float
    error_share: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    generator_cpu: float
    late_share: float

    @property
    def is_generator_limit(self) -> bool:
        return (
            self.generator_cpu > GENERATOR_CPU_LIMIT
            or self.late_share > LATE_SHARE_LIMIT
            or self.num_missed > 0
        )

    def is_sustained(self, objectives: Objectives) -> bool:
        """Whether the objectives for single calls are held. In open loop a server that falls behind soon
        breaks
        them, because the wait is part of the latency."""
        return not objectives.breaches_of_calls(self)


def measure(
    plan: Sequence[Phase], timeline: Timeline, *, start_s: float, end_s: float, settle_s: float
) -> list[Outcome]:
    """One outcome for each phase that lasted longer than --settle-s."""
    outcomes = []
    for phase in plan:
        if start_s >= end_s:
            break
        phase_end_s = min(start_s + phase.duration_s, end_s)
        seconds = timeline.between(start_s + settle_s, phase_end_s)
        if seconds:
            outcomes.append(_sum_up(phase, seconds))
        start_s += phase.duration_s
    return outcomes


def find_knee(steps: Sequence[Outcome], objectives: Objectives) -> Outcome | None:
    """The highest load that is sustained, as is every lower one; None if the lowest is not."""
    knee = None
    for outcome in steps:
        if not outcome.is_sustained(objectives):
            break
        knee = outcome
    return knee


def _sum_up(phase: Phase, seconds: Sequence[Second]) -> Outcome:
    total = Second()
    for second in seconds:
        total.add(second)
    offered = max(total.offered, 1)  # shares of nothing are 0
    busy = [second.generator_cpu for second in seconds if second.generator_cpu]
    return Outcome(
        phase=phase,
        num_seconds=len(seconds),
        num_offered=total.offered,
        num_missed=total.missed,
        offered_per_s=total.offered / len(seconds),
        answered_per_s=total.ended_well / len(seconds),
        error_share=(total.failed + total.missed) / offered,
        p50_ms=percentile(total, 0.50),
        p95_ms=percentile(total, 0.95),
        p99_ms=percentile(total, 0.99),
        generator_cpu=sum(busy) / len(busy) if busy else 0.0,
        late_share=total.late / offered,
    )


def percentile(second: Second, share: float) -> float:
    """The smallest latency that `share` of the calls do not exceed, in ms; NaN without calls."""
    rest = share * second.latencies_ms.total()
    for latency_ms in sorted(second.latencies_ms):
        rest -= second.latencies_ms[latency_ms]
        if rest <= 0:
            return latency_ms
    return math.nan
