"""What is said to the server and in which order, without saying it.

Each method is a generator of the steps of `steps.py` and returns the result.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

from diptych_client.answer import Answer, Labels, Timings, explain, read_answer, read_labels
from diptych_client.contract import Request, ServerInfo
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address
from diptych_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ModelNotReady,
    Overloaded,
)
from diptych_client.exchange import Exchange
from diptych_client.steps import Pause, Steps, Together

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
    error: Optional[DiptychError] = None


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
        error: Optional[DiptychError] = None
        try:
            if is_deep:
                yield from self._exchange.infer(Request(text=QUESTION), deadline, may_retry=False)
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
                yield from self._exchange.infer(Request(text=QUESTION), attempt, may_retry=False)
                return
            except (ConnectionFailed, DeadlineExceeded, ModelNotReady, Overloaded) as error:
                if not deadline.allows(POLL_S):
                    message = f"not ready within {deadline.timeout_s:g} s; at last: {error.message}"
                    raise DeadlineExceeded(message, error.request_id) from None
            yield Pause(POLL_S)

    def _ask_for_labels(self, deadline: Deadline, at: Optional[Address]) -> Steps[Labels]:
        asked = yield from self._exchange.infer(Request(text=QUESTION, wants_labels=True), deadline, at=at)
        labels = self._labels[asked.address] = read_labels(asked.reply)
        return labels


def _to_ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
