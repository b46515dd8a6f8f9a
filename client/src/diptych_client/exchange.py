"""Gets one message answered: chooses the server, sends again where that helps, remembers who is down.

No I/O: yields the steps of `steps.py`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, Optional, TypeVar, Union

from diptych_client.balancing import Balancer
from diptych_client.contract import Reply, Request, ServerInfo
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address, Endpoint
from diptych_client.errors import (
    QUEUE_TIMEOUT,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ModelNotReady,
    Overloaded,
)
from diptych_client.retries import Retries, RetryBudget
from diptych_client.steps import Describe, Infer, Pause, Resolve, Steps

T = TypeVar("T")

# Who has more than this left when the server's queue lets him go has met the server's limit, not his own.
TIME_LEFT_S = 0.1


@dataclasses.dataclass(frozen=True)
class Answered(Generic[T]):
    """A reply, whose it is, and how long its own attempt took."""

    reply: T
    address: Address
    num_attempts: int
    waiting_s: float


class Exchange:
    """One for each client. Safe to share between threads."""

    def __init__(
        self, endpoints: Sequence[Endpoint], retries: Retries, redact: Callable[[str], str] = str
    ) -> None:
        self.balancer = Balancer(endpoints)
        self._redact = redact
        self._budget = RetryBudget(retries)

    def infer(
        self,
        request: Request,
        deadline: Deadline,
        *,
        at: Optional[Address] = None,
        may_retry: bool = True,
    ) -> Steps[Answered[Reply]]:
        """at  the one server to ask; None: whose turn it is"""

        def step(address: Address) -> Infer:
            return Infer(address, request, deadline)

        return self._carry(step, deadline, at, may_retry)

    def describe(self, deadline: Deadline, *, may_retry: bool = True) -> Steps[Answered[ServerInfo]]:
        def step(address: Address) -> Describe:
            return Describe(address, deadline)

        return self._carry(step, deadline, None, may_retry)

    def _carry(
        self,
        step: Callable[[Address], Union[Infer, Describe]],
        deadline: Deadline,
        at: Optional[Address],
        may_retry: bool,
    ) -> Steps[Answered[Any]]:
        tried: list[Address] = []
        while True:
            yield from self._resolve(deadline)
            address = self.balancer.pick(tried) if at is None else at
            tried.append(address)
            started_s = time.monotonic()
            try:
                reply = yield step(address)
            except DiptychError as caught:
                error = _by_time_left(caught, deadline)
                error.redact(self._redact)
                self._report(address, error)
                has_other = at is None and self.balancer.has_other(tried)
                pause_s = self._budget.pause_s(error, len(tried), deadline, has_other) if may_retry else None
                if pause_s is None:
                    raise error from caught.__cause__
            else:
                self.balancer.report_answer(address)
                self._budget.report_answer()
                return Answered(reply, address, len(tried), time.monotonic() - started_s)
            if pause_s:
                yield Pause(pause_s)

    def _resolve(self, deadline: Deadline) -> Steps[None]:
        """Look up the names whose addresses are old. One that cannot be found keeps those it had."""
        for endpoint in self.balancer.stale():
            try:
                addresses = yield Resolve(endpoint, deadline)
            except ConnectionFailed:
                if not self.balancer.addresses:
                    raise
            else:
                self.balancer.update(endpoint, addresses)

    def _report(self, address: Address, error: DiptychError) -> None:
        if isinstance(error, (ConnectionFailed, ModelNotReady)):
            self.balancer.report_failure(address)
        elif isinstance(error, DeadlineExceeded):
            self.balancer.report_timeout(address)
        else:
            self.balancer.report_answer(address)


def _by_time_left(error: DiptychError, deadline: Deadline) -> DiptychError:
    is_early = QUEUE_TIMEOUT in error.message and deadline.allows(TIME_LEFT_S)
    if is_early and isinstance(error, DeadlineExceeded):
        return Overloaded(error.message, error.request_id)
    return error
