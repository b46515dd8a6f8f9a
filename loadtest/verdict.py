"""Whether a run held its objectives: the objective, what was found and what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from loadtest.objectives import Objectives
from loadtest.outcome import Outcome, find_knee
from loadtest.plan import STEP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """breaches   reasons to fail the run
    warnings   reasons to doubt its figures
    knee       of a step shape: the highest sustained load
    """

    breaches: list[str]
    warnings: list[str]
    knee: Outcome | None = None

    @property
    def exit_code(self) -> int:
        return 1 if self.breaches else 0


def judge(shape: str, outcomes: Sequence[Outcome], objectives: Objectives) -> Verdict:
    """Objectives apply to every judged phase; throughput to the best of those that hold the others."""
    warnings = [_describe_generator(outcome) for outcome in outcomes if outcome.is_generator_limit]
    if not outcomes:
        return Verdict(breaches=["no phase lasted long enough to be measured"], warnings=warnings)
    knee = find_knee(outcomes, objectives) if shape == STEP else None
    if shape == STEP and knee is None:
        lowest = outcomes[0]
        reasons = objectives.breaches_of_calls(lowest)
        breaches = [f"{reason} ({_name(lowest)}, the lowest)" for reason in reasons]
        return Verdict(breaches=breaches, warnings=warnings)
    breaches = [
        f"{breach} ({_name(outcome)})"
        for outcome in outcomes
        if outcome.phase.is_judged
        for breach in objectives.breaches_of_calls(outcome)
    ]
    sustained = [knee] if knee else [one for one in outcomes if one.is_sustained(objectives)]
    throughput = max((one.answered_per_s for one in sustained), default=0.0)
    if throughput < objectives.throughput_per_s:
        breaches.append(_describe_throughput(throughput, outcomes, objectives))
    return Verdict(breaches=breaches, warnings=warnings, knee=knee)


def _describe_throughput(throughput: float, outcomes: Sequence[Outcome], objectives: Objectives) -> str:
    offered = max(outcome.offered_per_s for outcome in outcomes)
    required = objectives.throughput_per_s
    text = f"throughput_per_s: found {throughput:.1f} within the other objectives, required {required:.1f}"
    if offered < required:
        text += f"; no more than {offered:.1f} were offered: raise --users"
    return text


def _describe_generator(outcome: Outcome) -> str:
    found = f"{outcome.generator_cpu:.0%} of a core, {outcome.late_share:.1%} of the calls begun late"
    if outcome.num_missed:
        found += f", {outcome.num_missed} arrivals missed because --max-in-flight calls were in flight"
    return f"{_name(outcome)}: the load generator was at its limit ({found})"


def _name(outcome: Outcome) -> str:
    return f"{outcome.phase.name}, {outcome.offered_per_s:.1f} calls/s offered"
