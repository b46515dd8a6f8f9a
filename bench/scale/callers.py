"""Simulated callers: each runs the client's own balancer and retry budget on simulated time.

A call does what `diptych_client` does: a pod in turn, a pause after a refusal, another pod after a broken
connection, one deadline over all of it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import simpy

from bench.scale.pod import ANSWERED, LOST, REFUSED, Pod
from diptych_client import ConnectionFailed, DeadlineExceeded, DiptychError, Overloaded, Retries
from diptych_client._client import DEFAULT_TIMEOUT_S
from diptych_client._retries import Deadline, RetryBudget
from diptych_client._servers import (
    CONNECT_TIMEOUT_S,
    TIMEOUTS_UNTIL_DOWN,
    Address,
    Balancer,
    Endpoint,
)

LATE = "late"
ERRORS: dict[str, type[DiptychError]] = {REFUSED: Overloaded, LOST: ConnectionFailed, LATE: DeadlineExceeded}
NAME = Endpoint.parse("grpc://diptych-pods:8001")


class SimulatedDeadline(Deadline):
    """The client's deadline on the simulation's clock."""

    def __init__(self, env: simpy.Environment, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self._env, self._began_s = env, env.now

    def elapsed_s(self) -> float:
        return float(self._env.now) - self._began_s


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """at_s when it was due, latency_s until its end, and whether it was answered."""

    at_s: float
    latency_s: float
    is_answered: bool
    num_attempts: int


class Directory:
    """What the headless Service's name resolves to: the pods that the cluster calls ready."""

    def __init__(self) -> None:
        self._pods: dict[Address, Pod] = {}
        self._count = 0

    def add(self, pod: Pod) -> Address:
        self._count += 1
        address = Address(NAME, f"pod-{self._count}")
        self._pods[address] = pod
        return address

    def remove(self, address: Address) -> None:
        self._pods.pop(address, None)

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(self._pods)


class Caller:
    """One process with one client.

    pods       every pod that ever was, by address: an old answer of the resolver may name one that is gone
    calls      what became of each call, appended to
    """

    def __init__(
        self,
        env: simpy.Environment,
        directory: Directory,
        pods: dict[Address, Pod],
        items: Sequence[dict[str, float]],
        calls: list[Call],
        seed: int,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: Retries | None = None,
    ) -> None:
        self._env, self._directory, self._pods, self._items, self._calls = env, directory, pods, items, calls
        self._timeout_s = timeout_s
        self._balancer = Balancer([NAME], clock=lambda: env.now)
        self._balancer.update(NAME, directory.addresses)
        self._budget = RetryBudget(retries or Retries())
        self._timeouts: dict[Address, int] = {}
        self._random = random.Random(seed)

    def offer(self, rate_per_s: Callable[[float], float], until_s: float) -> Any:
        """A process: calls at random moments (Poisson), at a rate that may change with time."""
        peak = max(rate_per_s(until_s * step / 1000) for step in range(1001))
        while True:
            yield self._env.timeout(self._random.expovariate(peak))
            if self._env.now >= until_s:
                return
            if self._random.random() * peak < rate_per_s(self._env.now):
                self._env.process(self.call())

    def call(self) -> Any:
        """A process: one call with all its attempts."""
        env, deadline = self._env, SimulatedDeadline(self._env, self._timeout_s)
        began_s, tried, cost = env.now, [], self._random.choice(self._items)
        if self._balancer.stale():
            self._balancer.update(NAME, self._directory.addresses)
        while True:
            address = self._balancer.pick(tried)
            tried.append(address)
            outcome = yield from self._attempt(address, cost, deadline)
            if outcome == ANSWERED:
                self._timeouts.pop(address, None)
                self._balancer.report_answer(address)
                self._budget.report_answer()
                break
            error = outcome
            if isinstance(error, ConnectionFailed):
                self._balancer.report_failure(address)
            elif isinstance(error, DeadlineExceeded):
                self._timeouts[address] = self._timeouts.get(address, 0) + 1
                self._balancer.report_timeout(address)
            else:
                self._balancer.report_answer(address)
            pause_s = self._budget.pause_s(error, len(tried), deadline, self._balancer.has_other(tried))
            if pause_s is None:
                break
            yield env.timeout(pause_s)
        self._calls.append(Call(began_s, env.now - began_s, outcome == ANSWERED, len(tried)))

    def _attempt(self, address: Address, cost: dict[str, float], deadline: Deadline) -> Any:
        """ANSWERED or an error."""
        env, pod = self._env, self._pods[address]
        left_s = deadline.timeout_s - deadline.elapsed_s()
        if left_s <= 0:
            return DeadlineExceeded("no time left")
        if not pod.is_up and self._timeouts.get(address, 0) >= TIMEOUTS_UNTIL_DOWN:
            # The connection was given up, and a new one finds nobody.
            num_others = self._balancer.num_others([address])
            yield env.timeout(min(CONNECT_TIMEOUT_S, left_s / (1 + num_others)))
            return ConnectionFailed("no connection")
        ended = env.event()

        def end(outcome: str) -> None:
            if not ended.triggered:
                ended.succeed(outcome)

        pod.ask(cost, end, left_s)
        env.timeout(left_s).callbacks.append(lambda _: end(LATE))
        outcome = yield ended
        return ERRORS[outcome]("") if outcome in ERRORS else ANSWERED
