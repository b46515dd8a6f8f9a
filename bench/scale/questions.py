"""What is asked of the simulation: how many pods, and what a lost zone, a rollout and a spike do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from bench.scale.autoscaler import QUEUE, Prometheus, Rule
from bench.scale.callers import Call
from bench.scale.cluster import Cluster, Times
from bench.scale.fleet import NUM_ZONES, Fleet, Found, Shape
from diptych_serving.progress import track
from loadtest.objectives import Objectives

RATES_PER_S = (100, 10_000, 1_000_000)
# Of what a pod answers in batches of four.
UTILISATIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 1.0)
SPIKE_S, SPAN_S = (60, 300), 15
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
    capacity_per_s = shape.num_cores * 1000 / shape.costs.cpu_ms(4)
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
    """What happens to a deployment. base_per_s: calls of all callers; spike_per_s: those in SPIKE_S."""

    name: str
    num_pods: int
    base_per_s: float
    duration_s: float
    spike_per_s: float | None = None
    lost_zone_at_s: float | None = None
    rollout_at_s: float | None = None

    def rate_per_s(self, at_s: float) -> float:
        is_spike = self.spike_per_s is not None and SPIKE_S[0] <= at_s < SPIKE_S[1]
        return self.spike_per_s if is_spike and self.spike_per_s else self.base_per_s

    @property
    def began_s(self) -> float:
        return self.lost_zone_at_s or self.rollout_at_s or (SPIKE_S[0] if self.spike_per_s else 0.0)


# Loads at which each event matters: a pod of four cores holds about 130 of the quickstart's calls/s.
EVENTS = (
    Event(name="steady", num_pods=3, base_per_s=300, duration_s=900),
    Event(name="spike", num_pods=2, base_per_s=100, spike_per_s=300, duration_s=660),
    Event(name="lost zone", num_pods=3, base_per_s=250, duration_s=420, lost_zone_at_s=60),
    Event(name="rollout", num_pods=3, base_per_s=200, duration_s=330, rollout_at_s=60),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
    """One event under one rule.

    pod_hours     of all pods
    broken_s      seconds in which p99 or errors broke the objective
    back_after_s  from the event to the last of them
    spans         what callers saw in each SPAN_S
    counts        (seconds, pods ready, pods wanted, pods that exist)
    """

    event: str
    rule: str
    found: Found
    pod_hours: float
    most_pods: int
    broken_s: float
    back_after_s: float
    spans: Sequence[tuple[float, Found]]
    counts: Sequence[tuple[float, int, int, int]]


def tell(
    event: Event, rule_name: str, rule: Rule, shape: Shape, times: Times, objectives: Objectives
) -> Story:
    """Simulate it."""
    fleet = Fleet(shape)
    cluster = Cluster(fleet, times, event.num_pods, rule)
    fleet.offer(event.rate_per_s, event.duration_s)
    if event.lost_zone_at_s is not None:
        cluster.lose_zone(0, event.lost_zone_at_s)
    if event.rollout_at_s is not None:
        cluster.roll_out(event.rollout_at_s)
    fleet.env.run(event.duration_s + 10)
    spans = by_span(fleet.calls, SPAN_S, objectives.p99_ms)
    broken = [at_s for at_s, found in spans if not holds(found, objectives)]
    existing = [count[3] for count in cluster.counts]
    return Story(
        event=event.name,
        rule=rule_name,
        found=Found.of(fleet.calls, objectives.p99_ms),
        pod_hours=float(np.mean(existing)) * event.duration_s / 3600,
        most_pods=max(existing),
        broken_s=SPAN_S * len(broken),
        back_after_s=broken[-1] + SPAN_S - event.began_s if broken else 0.0,
        spans=spans,
        counts=cluster.counts,
    )


def by_span(calls: Sequence[Call], span_s: float, p99_ms: float) -> list[tuple[float, Found]]:
    """What callers saw in each span of time, by when the call was due."""
    spans: dict[int, list[Call]] = {}
    for call in calls:
        spans.setdefault(int(call.at_s // span_s), []).append(call)
    return [(number * span_s, Found.of(found, p99_ms)) for number, found in sorted(spans.items())]
