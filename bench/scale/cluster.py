"""Kubernetes around the simulated pods: it starts and ends them, loses a zone, rolls out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from bench.scale.autoscaler import EVALUATE_S, SCRAPE_S, SYNC_S, Autoscaler, Prometheus, Rule
from bench.scale.fleet import Fleet
from diptych_client._servers import Address

# Kubernetes' defaults: a silent machine is not ready after 50 s, and its pods are given up 300 s later.
NOT_READY_S, GIVEN_UP_S = 50.0, 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """start_s      from a pod's creation until it is ready
    settle_s     minReadySeconds: a rollout waits that long more
    pre_stop_s   between leaving the Service and the signal to end
    """

    start_s: float
    settle_s: float
    pre_stop_s: float


def load_times(path: Path, start_s: float) -> Times:
    """Read a Deployment."""
    spec = yaml.safe_load(path.read_text("utf-8"))["spec"]
    (serving,) = (each for each in spec["template"]["spec"]["containers"] if each["name"] == "serving")
    return Times(
        start_s=start_s,
        settle_s=spec["minReadySeconds"],
        pre_stop_s=serving["lifecycle"]["preStop"]["sleep"]["seconds"],
    )


class Cluster:
    """counts: (seconds, pods that are ready, pods that are wanted, pods that exist), once each SYNC_S."""

    def __init__(self, fleet: Fleet, times: Times, num_pods: int, rule: Rule | None) -> None:
        self._fleet, self._env, self._times = fleet, fleet.env, times
        self._wanted = num_pods
        self._ready: list[Address] = [fleet.add() for _ in range(num_pods)]
        self._num_starting = 0
        self._silent: list[Address] = []
        self._num_over = 0
        self.counts: list[tuple[float, int, int, int]] = []
        self._prometheus = Prometheus()
        self._recorded: dict[str, float] = {}
        self._autoscaler = Autoscaler(rule) if rule else None
        self._env.process(self._watch())

    def lose_zone(self, zone: int, at_s: float) -> None:
        self._env.process(self._lose(zone, at_s))

    def roll_out(self, at_s: float) -> None:
        self._env.process(self._replace_all(at_s))

    def _watch(self) -> Any:
        next_record_s = 0.0
        while True:
            now_s = self._env.now
            self._prometheus.scrape(
                now_s, [self._fleet.pod(address) for address in self._ready + self._silent]
            )
            if now_s >= next_record_s:
                self._recorded, next_record_s = self._prometheus.record(), now_s + EVALUATE_S
            if self._autoscaler:
                self._wanted = self._autoscaler.decide(now_s, self._recorded, self._wanted, len(self._ready))
            self._reconcile()
            self.counts.append((now_s, len(self._ready), self._wanted, self._num_existing))
            yield self._env.timeout(min(SYNC_S, SCRAPE_S))

    @property
    def _num_existing(self) -> int:
        return len(self._ready) + self._num_starting + len(self._silent)

    def _reconcile(self) -> None:
        """As many pods as wanted. A pod of a silent machine counts until it is given up."""
        for _ in range(self._wanted + self._num_over - self._num_existing):
            self._env.process(self._start())
        for _ in range(self._num_existing - self._wanted - self._num_over):
            if self._ready:
                self._env.process(self._end(self._ready.pop()))

    def _start(self) -> Any:
        self._num_starting += 1
        yield self._env.timeout(self._times.start_s)
        self._num_starting -= 1
        self._ready.append(self._fleet.add())

    def _end(self, address: Address) -> Any:
        """Leave the Service, wait, end. What is inside by then is still answered."""
        self._fleet.directory.remove(address)
        yield self._env.timeout(self._times.pre_stop_s)
        self._fleet.pod(address).has_left = True

    def _lose(self, zone: int, at_s: float) -> Any:
        yield self._env.timeout(at_s)
        lost = [address for address in self._ready if self._fleet.pod(address).zone == zone]
        for address in lost:
            self._fleet.pod(address).is_up = False
        yield self._env.timeout(NOT_READY_S)
        lost = [address for address in lost if address in self._ready]
        for address in lost:
            self._ready.remove(address)
            self._silent.append(address)
            self._fleet.directory.remove(address)
        yield self._env.timeout(GIVEN_UP_S)
        for address in lost:
            self._silent.remove(address)
        self._reconcile()

    def _replace_all(self, at_s: float) -> Any:
        """One new pod more, then one old pod less: maxSurge 1, maxUnavailable 0."""
        yield self._env.timeout(at_s)
        for address in list(self._ready):
            self._num_over += 1
            yield self._env.process(self._start())
            yield self._env.timeout(self._times.settle_s)
            self._num_over -= 1
            if address in self._ready:
                self._ready.remove(address)
                self._env.process(self._end(address))
