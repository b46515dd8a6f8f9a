"""A simulated deployment: pods, callers, and what became of every call."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np
import simpy

from bench.scale.callers import Call, Caller, Directory
from bench.scale.costs import Costs, StepPlan
from bench.scale.pod import Pod
from diptych_client import Retries
from diptych_client._servers import Address

NUM_ZONES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One deployment: what a pod is, and how it is called."""

    costs: Costs
    plans: Sequence[StepPlan]
    num_cores: int
    num_callers: int = 8
    timeout_s: float = 5.0
    retries: Retries | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What the callers saw. error_share: of the calls; slow_share: failed, or slower than the objective."""

    num_offered: int
    p50_ms: float
    p99_ms: float
    error_share: float
    slow_share: float
    attempts: float

    @classmethod
    def of(cls, calls: Sequence[Call], p99_ms: float) -> Found:
        latencies_ms = np.array([1000 * call.latency_s for call in calls if call.is_answered])
        if not len(latencies_ms):
            return cls(
                num_offered=len(calls),
                p50_ms=np.nan,
                p99_ms=np.nan,
                error_share=1.0,
                slow_share=1.0,
                attempts=0,
            )
        p50, p99 = np.percentile(latencies_ms, [50, 99]).tolist()
        num_good = int((latencies_ms <= p99_ms).sum())
        return cls(
            num_offered=len(calls),
            p50_ms=p50,
            p99_ms=p99,
            error_share=1 - len(latencies_ms) / len(calls),
            slow_share=1 - num_good / len(calls),
            attempts=sum(call.num_attempts for call in calls) / len(calls),
        )


class Fleet:
    """Pods and callers on one clock. The same seed gives the same history."""

    def __init__(self, shape: Shape, *, seed: int = 0) -> None:
        # The client's pauses draw from the module's own generator.
        random.seed(seed)
        self.env = simpy.Environment()
        self.shape = shape
        self.directory = Directory()
        self.calls: list[Call] = []
        self._pods: dict[Address, Pod] = {}
        self._seed = seed

    def add(self) -> Address:
        """A pod that is ready now, in the zone that has the fewest."""
        up = [pod.zone for pod in self._pods.values() if pod.is_up and not pod.has_left]
        zone = min(range(NUM_ZONES), key=up.count)
        pod = Pod(self.env, self.shape.costs, self.shape.plans, num_cores=self.shape.num_cores, zone=zone)
        address = self.directory.add(pod)
        self._pods[address] = pod
        return address

    def pod(self, address: Address) -> Pod:
        return self._pods[address]

    def offer(self, rate_per_s: Callable[[float], float], until_s: float) -> None:
        """Calls from all callers together at that rate, which may change with time."""
        share = 1 / self.shape.num_callers
        for number in range(self.shape.num_callers):
            caller = Caller(
                self.env,
                self.directory,
                self._pods,
                self.shape.costs.items,
                self.calls,
                seed=1000 * self._seed + number,
                timeout_s=self.shape.timeout_s,
                retries=self.shape.retries,
            )
            self.env.process(caller.offer(lambda at_s: share * rate_per_s(at_s), until_s))


def run_steadily(
    shape: Shape,
    *,
    num_pods: int,
    rate_per_s: float,
    duration_s: float,
    p99_ms: float,
    warmup_s: float = 5.0,
    seed: int = 0,
) -> Found:
    """A fixed number of pods under one load."""
    fleet = Fleet(shape, seed=seed)
    for _ in range(num_pods):
        fleet.add()
    until_s = warmup_s + duration_s
    fleet.offer(lambda _: rate_per_s, until_s)
    fleet.env.run(until_s + 10)
    return Found.of([call for call in fleet.calls if call.at_s >= warmup_s], p99_ms)
