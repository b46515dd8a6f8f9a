"""The sequence of requests for items, labels and health.

Each method is a generator of the steps of `_exchange.py` and returns the result.
"""

from __future__ import annotations

import dataclasses

from diptych_client._answer import (
    Answer,
    Labels,
    Request,
    ServerInfo,
    Timings,
    explain,
    read_answer,
    read_labels,
)
from diptych_client._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ModelNotReady,
    Overloaded,
)
from diptych_client._exchange import Alone, Exchange, Pause, Steps, Together
from diptych_client._headers import Pairs
from diptych_client._retries import Deadline
from diptych_client._servers import Address

# The smallest item that every model answers.
QUESTION = b"labels"
# Interval and timeout of requests to a starting server: a model's first inference can be slow.
POLL_S = 0.2
POLL_TIMEOUT_S = 5.0
# A client that has seen more releases than this forgets the oldest.
NUM_LABELS_KEPT = 16


@dataclasses.dataclass(frozen=True)
class Health:
    """The result of a health check.

    is_healthy   whether the server can answer, as far as checked
    is_deep      whether an inference was run: Triton calls a model ready even if its process is dead
    duration_ms  duration of the check
    error        why it is not healthy; None if it is
    """

    is_healthy: bool
    is_deep: bool
    duration_ms: float
    error: DiptychError | None = None


@dataclasses.dataclass(frozen=True)
class Question:
    """One item with its options."""

    image: bytes
    text: bytes
    deadline: Deadline
    min_score: float
    headers: Pairs = ()
    request_id: str | None = None

    def request(self) -> Request:
        if self.request_id is None:
            return Request(self.image, self.text)
        return Request(self.image, self.text, request_id=self.request_id)


class Conversation:
    """Makes the requests of a client, and remembers label names. Safe to share between threads.

    Labels never name the probabilities of another release. Each answer carries the identity of its labels.txt
    (`labels_sha256`), and names are kept under this identity. So a proxy, a load balancer, a release or a
    restart with another repository between two answers cannot mix them.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._labels: dict[str, Labels] = {}

    def classify(self, question: Question) -> Steps[Answer]:
        """Request the answer, and once for each labels.txt the names.

        FP32 values have no names, and Triton's strings with names (`score:index:label`) cut the scores at six
        decimals. So the names come from a separate request.
        """
        deadline = question.deadline
        encode_s = deadline.elapsed_s()
        request = question.request()
        num_attempts = 0
        while True:
            asked = yield from self._exchange.infer(request, deadline, headers=question.headers)
            num_attempts += asked.num_attempts
            identity = asked.reply.labels_identity
            labels = self._labels.get(identity)
            if labels is None:
                try:
                    part = self._learn_labels(identity, question, asked.address)
                    labels = yield Alone(part, deadline, request.request_id)
                except (ConnectionFailed, ModelNotReady):
                    if not self._exchange.balancer.has_other({asked.address}):
                        raise
                    continue  # it stopped between the two requests: another server answers both
            if labels.identity == identity:
                break  # else the model was replaced between the two requests
        timings = Timings(
            _to_ms(deadline.elapsed_s()), _to_ms(encode_s), _to_ms(asked.waiting_s), num_attempts
        )
        return read_answer(asked.reply, labels, question.min_score, timings)

    def explain(self, question: Question) -> Steps[Answer]:
        """Ask about the whole item, and about each modality alone."""
        image, text = question.image, question.text
        if not image or not text.strip():
            answer = yield from self.classify(question)
            return explain(answer, answer if image else None, None if image else answer)
        request_id = question.request_id
        image_only = dataclasses.replace(question, text=b"", request_id=request_id and f"{request_id}-image")
        text_only = dataclasses.replace(question, image=b"", request_id=request_id and f"{request_id}-text")
        answers = yield Together(tuple(map(self.classify, (question, image_only, text_only))))
        return explain(*answers)

    def labels(self, deadline: Deadline) -> Steps[Labels]:
        """Request the labels with a tiny inference: nothing else returns them."""
        return (yield from self._ask_for_labels(deadline, None))

    def server_info(self, deadline: Deadline) -> Steps[ServerInfo]:
        return (yield from self._exchange.describe(deadline)).reply

    def health(self, deadline: Deadline, is_deep: bool) -> Steps[Health]:
        """Check once, without retries. Never raises DiptychError."""
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
        """Ask until an inference is answered. Raises DeadlineExceeded with the last error, and at once an
        error
        that waiting cannot change."""
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

    def _learn_labels(self, identity: str, question: Question, at: Address) -> Steps[Labels]:
        """Ask, unless another call has done it while this one waited."""
        known = self._labels.get(identity)
        return known or (yield from self._ask_for_labels(question.deadline, at, question.headers))

    def _ask_for_labels(self, deadline: Deadline, at: Address | None, headers: Pairs = ()) -> Steps[Labels]:
        request = Request(text=QUESTION, wants_labels=True, is_probe=True)
        asked = yield from self._exchange.infer(request, deadline, at=at, headers=headers)
        labels = read_labels(asked.reply)
        while len(self._labels) >= NUM_LABELS_KEPT:
            self._labels.pop(next(iter(self._labels), ""), None)  # another thread may have been faster
        self._labels[labels.identity] = labels
        return labels


def _to_ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
