"""The client that services hold: it turns items into bytes and carries the conversation to the server."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Optional, TypeVar

from diptych_client.answer import Answer
from diptych_client.conversation import Conversation, Messages
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Endpoint
from diptych_client.inputs import encode_item
from diptych_client.transport import open_transport

if TYPE_CHECKING:
    from diptych_client.inputs import ImageInput

# An answer takes tens of milliseconds; a caller who waits for five seconds has an outage, not a slow answer.
DEFAULT_TIMEOUT_S = 5.0

T = TypeVar("T")


class Client:
    """Calls one server. Make one, share it between threads, close it at the end.

    with Client("grpc://127.0.0.1:8001") as client:
        answer = client.classify(image="phone.jpg", text="A modern smartphone")
        print(answer.label, answer.score)
    """

    def __init__(self, url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Opens no connection yet.

        url        grpc://host:port or http://host:port
        timeout_s  the total time that one call may take, unless the call says otherwise
        """
        Deadline(timeout_s)  # refuses what is no time
        self._endpoint = Endpoint.parse(url)
        self._timeout_s = timeout_s
        self._transport = open_transport(self._endpoint)
        self._conversation = Conversation()
        self._is_closed = False

    def classify(
        self, image: ImageInput = None, text: Optional[str] = None, *, timeout_s: Optional[float] = None
    ) -> Answer:
        """Classify one item by its image, its text, or both.

        image      a path, an encoded file's bytes, a binary file object, a PIL image, or an (H, W, 3) uint8
                   RGB array. URLs are not fetched.
        text       a few words
        timeout_s  the total time for this call; None: the client's
        raises     DiptychError, of the kind that errors.py draws
        """
        deadline = self._start(timeout_s)
        return self._carry(self._conversation.classify(*encode_item(image, text)), deadline)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities, as the server has them now."""
        return self._carry(self._conversation.labels(), self._start(None)).names

    def close(self) -> None:
        """Close the connections. Calls in flight may fail; later ones raise RuntimeError."""
        self._is_closed = True
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({str(self._endpoint)!r}, timeout_s={self._timeout_s:g})"

    def _start(self, timeout_s: Optional[float]) -> Deadline:
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed")
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    def _carry(self, messages: Messages[T], deadline: Deadline) -> T:
        """Carry a conversation's requests out and the replies in, until it has its result."""
        try:
            request = next(messages)
            while True:
                request = messages.send(self._transport.infer(request, deadline))
        except StopIteration as end:
            result: T = end.value
            return result
