"""What is said to a server and in which order, without any I/O.

Each method is a generator. It yields a step, is sent the step's outcome or thrown its DiptychError, and
returns the result at its end. So the order of things is written once, and `Client` and `AsyncClient` only
carry the steps out, as httpx does with its authentication flows.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeVar

from diptych_client._answer import (
    Answer,
    Labels,
    Reply,
    Request,
    ServerInfo,
    Timings,
    explain,
    read_answer,
    read_labels,
)
from diptych_client._errors import (
    QUEUE_TIMEOUT,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ModelNotReady,
    Overloaded,
)
from diptych_client._retries import Deadline, Retries, RetryBudget
from diptych_client._servers import Address, Balancer, Endpoint

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Infer:
    """Outcome: Reply."""

    address: Address
    request: Request
    deadline: Deadline


@dataclasses.dataclass(frozen=True)
class Describe:
    """Outcome: ServerInfo."""

    address: Address
    deadline: Deadline


@dataclasses.dataclass(frozen=True)
class Resolve:
    """Outcome: tuple[Address, ...]."""

    endpoint: Endpoint
    deadline: Deadline


@dataclasses.dataclass(frozen=True)
class Pause:
    """Outcome: None."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Together:
    """Run all at once. Outcome: list of their results, in order; the first error, where there is one."""

    parts: tuple[Steps[Any], ...]


Step = Infer | Describe | Resolve | Pause | Together
Steps = Generator[Step, Any, T]


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
        at: Address | None = None,
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
        step: Callable[[Address], Infer | Describe],
        deadline: Deadline,
        at: Address | None,
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


# The smallest question that every model answers.
QUESTION = b"labels"
# A server that starts is asked this often, and each question may take this long: the first inference of a
# model can be slow.
POLL_S = 0.2
POLL_TIMEOUT_S = 5.0


@dataclasses.dataclass(frozen=True)
class Health:
    """What a look at the server found.

    is_healthy   whether it can answer, as far as was looked
    is_deep      whether an inference was run: Triton calls a model ready whose Python process has died
    duration_ms  how long the look took
    error        why it is not healthy; None where it is
    """

    is_healthy: bool
    is_deep: bool
    duration_ms: float
    error: DiptychError | None = None


class Conversation:
    """Remembers each server's labels. Safe to share between threads: a race at worst asks for them twice."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._labels: dict[Address, Labels] = {}

    def classify(self, image: bytes, text: bytes, deadline: Deadline, min_score: float) -> Steps[Answer]:
        """Ask for the answer; then, once for each server and version of the model, for its labels.

        FP32 values carry no names, and Triton's strings that do (`score:index:label`) cut the scores at six
        decimals. So the names come from one request of their own, and every other call stays exact and cheap.
        """
        encode_s = deadline.elapsed_s()
        while True:
            asked = yield from self._exchange.infer(Request(image, text), deadline)
            labels = self._labels.get(asked.address)
            if labels is None or labels.model_version != asked.reply.model_version:
                try:
                    labels = yield from self._ask_for_labels(deadline, asked.address)
                except (ConnectionFailed, ModelNotReady):
                    if not self._exchange.balancer.has_other({asked.address}):
                        raise
                    continue  # it went away between the two questions: another server answers both
            if labels.model_version == asked.reply.model_version:
                break  # else the model was replaced between the two questions
        timings = Timings(
            _to_ms(deadline.elapsed_s()), _to_ms(encode_s), _to_ms(asked.waiting_s), asked.num_attempts
        )
        return read_answer(asked.reply, labels, min_score, timings)

    def explain(self, image: bytes, text: bytes, deadline: Deadline, min_score: float) -> Steps[Answer]:
        """Ask about all that the item has, and about each modality alone."""
        whole = self.classify(image, text, deadline, min_score)
        if not image or not text.strip():
            answer = yield from whole
            return explain(answer, answer if image else None, None if image else answer)
        alone = [self.classify(*part, deadline, min_score) for part in ((image, b""), (b"", text))]
        return explain(*(yield Together((whole, *alone))))

    def labels(self, deadline: Deadline) -> Steps[Labels]:
        """Ask for the labels. Only an inference returns them; a tiny one does."""
        return (yield from self._ask_for_labels(deadline, None))

    def server_info(self, deadline: Deadline) -> Steps[ServerInfo]:
        return (yield from self._exchange.describe(deadline)).reply

    def health(self, deadline: Deadline, is_deep: bool) -> Steps[Health]:
        """Look once, without retries: the present truth is asked for. Never raises DiptychError."""
        error: DiptychError | None = None
        try:
            if is_deep:
                yield from self._exchange.infer(
                    Request(text=QUESTION, is_probe=True), deadline, may_retry=False
                )
            elif not (yield from self._exchange.describe(deadline, may_retry=False)).reply.is_ready:
                error = ModelNotReady("the server calls the model not ready")
        except DiptychError as caught:
            error = caught
        return Health(error is None, is_deep, _to_ms(deadline.elapsed_s()), error)

    def wait_until_ready(self, deadline: Deadline) -> Steps[None]:
        """Ask until an inference is answered. Raises DeadlineExceeded with what was last in the way, and at
        once what waiting cannot mend."""
        while True:
            attempt = Deadline(min(POLL_TIMEOUT_S, deadline.remaining_s()))
            try:
                yield from self._exchange.infer(
                    Request(text=QUESTION, is_probe=True), attempt, may_retry=False
                )
                return
            except (ConnectionFailed, DeadlineExceeded, ModelNotReady, Overloaded) as error:
                if not deadline.allows(POLL_S):
                    message = f"not ready within {deadline.timeout_s:g} s; at last: {error.message}"
                    raise DeadlineExceeded(message, error.request_id) from None
            yield Pause(POLL_S)

    def _ask_for_labels(self, deadline: Deadline, at: Address | None) -> Steps[Labels]:
        request = Request(text=QUESTION, wants_labels=True, is_probe=True)
        asked = yield from self._exchange.infer(request, deadline, at=at)
        labels = self._labels[asked.address] = read_labels(asked.reply)
        return labels


def _to_ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
