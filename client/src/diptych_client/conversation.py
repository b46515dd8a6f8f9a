"""What is said to the server and in which order, without saying it.

Each method is a generator that yields requests, is sent the replies, and returns the result. So the order of
things is written once, and `Client` (later its async twin) only carries the messages: the way of httpx's
authentication flows.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Optional, TypeVar

from diptych_client.answer import Answer, Labels, read_answer, read_labels
from diptych_client.contract import Reply, Request

T = TypeVar("T")
Messages = Generator[Request, Reply, T]


class Conversation:
    """Remembers the labels. Safe to share between threads: a race at worst asks for them twice."""

    def __init__(self) -> None:
        self._labels: Optional[Labels] = None

    def classify(self, image: bytes, text: bytes) -> Messages[Answer]:
        """Ask for the answer; then, once for each version of the model, for its labels.

        FP32 values carry no names, and Triton's strings that do (`score:index:label`) cut the scores at six
        decimals. So the names come from one request of their own, and every other call stays exact and cheap.
        """
        reply = yield Request(image, text)
        labels = self._labels
        if labels is None or labels.model_version != reply.model_version:
            labels = yield from self.labels()
        return read_answer(reply, labels)

    def labels(self) -> Messages[Labels]:
        """Ask for the labels. Only an inference returns them; a tiny one does."""
        reply = yield Request(text=b"labels", wants_labels=True)
        self._labels = read_labels(reply)
        return self._labels
