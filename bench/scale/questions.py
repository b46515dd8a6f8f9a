"""What is asked of the simulation: how many pods, and what a lost zone, a rollout and a spike do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from bench.scale.autoscaler import QUEUE, Prometheus, Rule
from bench.scale.callers import Call
from bench.scale.cluster import Cluster, Times
from bench.scale.fleet import NUM_ZONES, Fleet, Found, Shape, run_steadily
from diptych_serving.progress import progress_bar, track
from loadtest.objectives import Objectives

RATES_PER_S = (100, 10_000, 1_000_000)
UTILISATIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05)
SPIKE_S = (60, 420)
# Pods that stand for all: with many callers each pod's arrivals are independent of the other pods'.
SAMPLE_PODS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """One load of a pod, and what Prometheus would show for its queues."""

    rate_per_s: float
    found: Found
    queue_us: float
    busy_share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replicas:
    """rate_per_s  of all callers
    num_needed  pods that hold the objectives with nothing lost
    num_kept    as many more as a lost zone takes away
    """

    rate_per_s: float
    num_needed: int
    num_kept: int


def climb(shape: Shape, objectives: Objectives, *, duration_s: float) -> list[Load]:
    """More and more load on a few pods."""
    capacity_per_s = shape.num_cores * 1000 / shape.costs.cpu_ms()
    found = []
    for share in track(UTILISATIONS, "simulating loads", len(UTILISATIONS)):
        fleet = Fleet(shape)
        pods = [fleet.pod(fleet.add()) for _ in range(SAMPLE_PODS)]
        rate_per_s = share * capacity_per_s
        fleet.offer(lambda _, rate=rate_per_s: SAMPLE_PODS * rate, duration_s)
        prometheus = Prometheus()
        while fleet.env.now < duration_s:
            fleet.env.run(fleet.env.now + 15)
            prometheus.scrape(fleet.env.now, pods)
        shown = prometheus.record()
        busy_s = sum(pod.processor.busy_s for pod in pods)
        fleet.env.run(duration_s + 10)
        found.append(
            Load(
                rate_per_s=rate_per_s,
                found=Found.of([call for call in fleet.calls if call.at_s >= 5], objectives.p99_ms),
                queue_us=shown[QUEUE],
                busy_share=busy_s / (duration_s * shape.num_cores * SAMPLE_PODS),
            )
        )
    return found


def knee(loads: Sequence[Load], objectives: Objectives) -> float:
    """Calls a second of one pod: the highest load which, like every lower one, holds the objectives."""
    held = 0.0
    for load in loads:
        if not holds(load.found, objectives):
            break
        held = load.rate_per_s
    return held


def holds(found: Found, objectives: Objectives) -> bool:
    return found.p99_ms <= objectives.p99_ms and found.error_share <= objectives.error_share


def replicas(rate_per_s: float, knee_per_s: float) -> Replicas:
    """A lost zone takes a third of the pods; what is left must hold the load."""
    needed = max(1, math.ceil(rate_per_s / knee_per_s))
    in_a_zone = math.ceil(needed / (NUM_ZONES - 1))
    return Replicas(rate_per_s=rate_per_s, num_needed=needed, num_kept=NUM_ZONES * in_a_zone)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """What happens to a deployment. rate_per_s: of all callers, by the second."""

    name: str
    num_pods: int
    rate_per_s: Callable[[float], float]
    duration_s: float
    lost_zone_at_s: float | None = None
    rollout_at_s: float | None = None


def events() -> list[Event]:
    """Loads at which each event matters: a pod of four cores holds about 130 of the quickstart's calls/s."""
    return [
        Event(name="steady", num_pods=3, rate_per_s=lambda _: 300, duration_s=1200),
        Event(
            name="spike",
            num_pods=2,
            rate_per_s=lambda at_s: 300 if SPIKE_S[0] <= at_s < SPIKE_S[1] else 100,
            duration_s=900,
        ),
        Event(name="lost zone", num_pods=3, rate_per_s=lambda _: 250, duration_s=600, lost_zone_at_s=60),
        Event(name="rollout", num_pods=3, rate_per_s=lambda _: 250, duration_s=360, rollout_at_s=60),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
    """One event under one rule. pod_hours: of all pods. minutes_missed: in which p99 or errors broke."""

    event: str
    rule: str
    found: Found
    pod_hours: float
    most_pods: int
    minutes_missed: int
    back_after_s: float
    calls: Sequence[Call]
    counts: Sequence[tuple[float, int, int, int]]


def tell(
    event: Event, rule_name: str, rule: Rule | None, shape: Shape, times: Times, objectives: Objectives
) -> Story:
    """Simulate it. `back_after_s`: from the event to the last 15 s that broke an objective; 0: none broke."""
    fleet = Fleet(shape)
    cluster = Cluster(fleet, times, event.num_pods, rule)
    fleet.offer(event.rate_per_s, event.duration_s)
    if event.lost_zone_at_s is not None:
        cluster.lose_zone(0, event.lost_zone_at_s)
    if event.rollout_at_s is not None:
        cluster.roll_out(event.rollout_at_s)
    with progress_bar(f"simulating {event.name}, {rule_name}", int(event.duration_s)) as advance:
        while fleet.env.now < event.duration_s:
            fleet.env.run(fleet.env.now + 10)
            advance(10)
    fleet.env.run(event.duration_s + 10)
    broken = [
        at_s for at_s, found in by_span(fleet.calls, 15, objectives.p99_ms) if not holds(found, objectives)
    ]
    minutes = [
        found for _, found in by_span(fleet.calls, 60, objectives.p99_ms) if not holds(found, objectives)
    ]
    began_s = event.lost_zone_at_s or event.rollout_at_s or SPIKE_S[0]
    existing = [count[3] for count in cluster.counts]
    return Story(
        event=event.name,
        rule=rule_name,
        found=Found.of(fleet.calls, objectives.p99_ms),
        pod_hours=float(np.mean(existing)) * event.duration_s / 3600,
        most_pods=max(existing),
        minutes_missed=len(minutes),
        back_after_s=max(0.0, max(broken, default=0.0) + 15 - began_s) if broken else 0.0,
        calls=fleet.calls,
        counts=cluster.counts,
    )


def by_span(calls: Sequence[Call], span_s: float, p99_ms: float) -> list[tuple[float, Found]]:
    """What callers saw in each span of time, by when the call was due."""
    spans: dict[int, list[Call]] = {}
    for call in calls:
        spans.setdefault(int(call.at_s // span_s), []).append(call)
    return [(number * span_s, Found.of(found, p99_ms)) for number, found in sorted(spans.items())]


def scale_samples(
    shape: Shape, rate_per_s: float, objectives: Objectives, *, duration_s: float
) -> dict[int, Found]:
    """The same load a pod with more pods and callers: whether a few stand for many."""
    return {
        num_pods: run_steadily(
            dataclasses.replace(shape, num_callers=4 * num_pods),
            num_pods=num_pods,
            rate_per_s=num_pods * rate_per_s,
            duration_s=duration_s,
            p99_ms=objectives.p99_ms,
        )
        for num_pods in track((1, 3, 12), "simulating samples", 3)
    }
