"""Gets an answer to one message, without any I/O: chooses the server, and whether to send again.

The logic here and in `_conversation.py` is generators. A generator yields a step, receives its outcome (or
its DiptychError is thrown into it), and returns the result. So the logic is written once, and `Client` and
`AsyncClient` only carry out the steps, as in httpx's authentication flows.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeVar

from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._errors import (
    QUEUE_TIMEOUT,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ModelNotReady,
    Overloaded,
)
from diptych_client._headers import Pairs
from diptych_client._retries import Deadline, Retries, RetryBudget
from diptych_client._servers import CONNECT_TIMEOUT_S, Address, Balancer, Endpoint

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Infer:
    """Outcome: Reply.

    connect_timeout_s  seconds to connect, so that time is left for other servers
    headers            only for this call
    """

    address: Address
    request: Request
    deadline: Deadline
    connect_timeout_s: float
    headers: Pairs = ()


@dataclasses.dataclass(frozen=True)
class Describe:
    """Outcome: ServerInfo. The rest is as in Infer."""

    address: Address
    deadline: Deadline
    connect_timeout_s: float
    headers: Pairs = ()


@dataclasses.dataclass(frozen=True)
class Resolve:
    """Look up a name. Outcome: None, after the look-up, or at once if the call need not wait."""

    endpoint: Endpoint
    deadline: Deadline
    must_wait: bool


@dataclasses.dataclass(frozen=True)
class Pause:
    """Outcome: None."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Together:
    """Run all at once. Outcome: list of their results, in order; the first error, if there is one."""

    parts: tuple[Steps[Any], ...]


@dataclasses.dataclass(frozen=True)
class Alone:
    """Run while no other call of this client runs such a part. Outcome: its result."""

    part: Steps[Any]
    deadline: Deadline
    request_id: str


Step = Infer | Describe | Resolve | Pause | Together | Alone
Steps = Generator[Step, Any, T]

# If the server's queue drops a request with more than this time left, it was the server's limit.
TIME_LEFT_S = 0.1
_log = logging.getLogger("diptych_client")


@dataclasses.dataclass(frozen=True)
class Answered(Generic[T]):
    """A reply, its server, and the duration of its attempt."""

    reply: T
    address: Address
    num_attempts: int
    waiting_s: float


class Exchange:
    """Gets an answer to one message: chooses the server, retries if that helps, remembers which servers are
    down.

    One for each client. Safe to share between threads.
    """

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
        at: Address | None = None,
        may_retry: bool = True,
        headers: Pairs = (),
    ) -> Steps[Answered[Reply]]:
        """at  the one server to ask; None: the next one"""

        def step(address: Address, connect_timeout_s: float) -> Infer:
            return Infer(address, request, deadline, connect_timeout_s, headers)

        return self._carry(step, deadline, at, may_retry)

    def describe(self, deadline: Deadline, *, may_retry: bool = True) -> Steps[Answered[ServerInfo]]:
        def step(address: Address, connect_timeout_s: float) -> Describe:
            return Describe(address, deadline, connect_timeout_s)

        return self._carry(step, deadline, None, may_retry)

    def _carry(
        self,
        step: Callable[[Address, float], Infer | Describe],
        deadline: Deadline,
        at: Address | None,
        may_retry: bool,
    ) -> Steps[Answered[Any]]:
        tried: list[Address] = []
        while True:
            yield from self._resolve(deadline)
            address = self.balancer.pick(tried) if at is None else at
            tried.append(address)
            num_others = self.balancer.num_others(tried) if at is None else 0
            # If no time is left, the transport raises, with the request's id.
            left_s = max(0.0, deadline.timeout_s - deadline.elapsed_s())
            connect_timeout_s = min(CONNECT_TIMEOUT_S, left_s / (1 + num_others))
            started_s = time.monotonic()
            try:
                reply = yield step(address, connect_timeout_s)
            except DiptychError as caught:
                error = _by_time_left(caught, deadline)
                error.redact(self._redact)
                error.server, error.num_attempts = str(address), len(tried)
                self._report(address, error)
                has_other = at is None and self.balancer.has_other(tried)
                pause_s = self._budget.pause_s(error, len(tried), deadline, has_other) if may_retry else None
                if pause_s is None:
                    raise error from caught.__cause__
                # Not the message: it may contain text of an item.
                kind = type(error).__name__
                _log.info("%s: %s; attempt %d in %.2f s", address, kind, len(tried) + 1, pause_s)
            else:
                self.balancer.report_answer(address)
                self._budget.report_answer()
                return Answered(reply, address, len(tried), time.monotonic() - started_s)
            if pause_s:
                yield Pause(pause_s)

    def _resolve(self, deadline: Deadline) -> Steps[None]:
        """Look up the names with old addresses. Wait only for a name without any address."""
        for endpoint in self.balancer.stale():
            try:
                yield Resolve(endpoint, deadline, must_wait=not self.balancer.has_addresses(endpoint))
            except ConnectionFailed:
                if not self.balancer.addresses:
                    raise

    def _report(self, address: Address, error: DiptychError) -> None:
        if isinstance(error, (ConnectionFailed, ModelNotReady)):
            self.balancer.report_failure(address)
        elif isinstance(error, DeadlineExceeded):
            self.balancer.report_timeout(address)
        else:
            self.balancer.report_answer(address)


def _by_time_left(error: DiptychError, deadline: Deadline) -> DiptychError:
    is_early = QUEUE_TIMEOUT in error.message and deadline.allows(TIME_LEFT_S)
    if not is_early or not isinstance(error, DeadlineExceeded):
        return error
    refusal = Overloaded(error.message, error.request_id)
    refusal.status, refusal.retry_after_s = error.status, error.retry_after_s
    return refusal
