"""A server for tests, in the test's own process: no torch, no exported model, no socket.

    fake = FakeServer(["food", "tools"])
    fake.answer = {"food": 0.9}
    with fake.client() as client:
        assert client.classify(text="apple").label == "food"
    assert fake.requests[0].text == "apple"

Only the wire is replaced. The clients are real: they check and encode items, request labels, apply
`min_score` and keep deadlines.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych_client._answer import Reply, Request, ServerInfo, pack_bytes
from diptych_client._client import AsyncClient, Client
from diptych_client._errors import ConnectionFailed, DeadlineExceeded, DiptychError, ModelNotReady
from diptych_client._retries import Retries
from diptych_client._servers import Address
from diptych_client._transports._base import Attempt
from diptych_client._transports._threaded import ThreadedTransport

__all__ = ["FakeRequest", "FakeServer", "GivenAnswer"]

# Not on a network: the fake is called instead.
URL = "local:fake"


@dataclasses.dataclass(frozen=True)
class FakeRequest:
    """One item as it would have been sent.

    image       the encoded file; empty for no image
    text        empty for no text
    request_id  as in the answer
    """

    image: bytes
    text: str
    request_id: str


# A label, probabilities by label, an error, or a function that returns one of these for each request.
FixedAnswer = str | Mapping[str, float] | DiptychError
GivenAnswer = FixedAnswer | Callable[[FakeRequest], FixedAnswer]


class FakeServer:
    """Answers the clients that it makes. Safe to share between threads.

    labels         of the model, in order
    answer         the answer to every item; may be changed at any time. A label: its probability is 1.
                   Probabilities by label: missing labels share the rest of 1. A DiptychError: it is raised. A
                   function: it is called for each request, and returns or raises one of these. Default: the
                   first label.
    model_version  in every answer; may be changed at any time
    requests       the items of all requests, in order. `explain=True` sends up to three for each item. A
                   client's own requests (labels, health) are not included.
    """

    def __init__(self, labels: Sequence[str], answer: GivenAnswer | None = None) -> None:
        if isinstance(labels, str) or not labels or len(set(labels)) != len(labels):
            raise ValueError(f"labels: found {labels!r}; accepted: a sequence of different labels")
        self.labels = tuple(labels)
        self.answer: GivenAnswer = self.labels[0] if answer is None else answer
        self.model_version = "1"
        self.requests: list[FakeRequest] = []

    def client(self, **options: Any) -> Client:
        """A blocking client of this server.

        options  as for `Client`, without the URL. Without `retries`, failed requests are not sent again, so
                 that the test sees each error at once.
        """
        return _FakedClient(self, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        """As `client`, for asyncio. The answer function is called in a worker thread."""
        return _FakedAsyncClient(self, **options)


class _FakedClient(Client):
    def __init__(self, server: FakeServer, **options: Any) -> None:
        self._fake = _FakeTransport(server)
        super().__init__(URL, **{"retries": Retries(max_attempts=1), **options})

    def _open(self, address: Address) -> _FakeTransport:
        return self._fake

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct, (type(self), self._fake.server, self._given)


class _FakedAsyncClient(AsyncClient):
    def __init__(self, server: FakeServer, **options: Any) -> None:
        self._server = server
        self._fake = ThreadedTransport(_FakeTransport(server))
        super().__init__(URL, **{"retries": Retries(max_attempts=1), **options})

    def _open(self, address: Address) -> ThreadedTransport:
        return self._fake

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct, (type(self), self._server, self._given)


def _reconstruct(kind: type[Any], server: FakeServer, given: dict[str, Any]) -> Any:
    """For pickle and deepcopy: an equal client of a copy of its server."""
    return kind(server, **{name: value for name, value in given.items() if name != "url"})


class _FakeTransport:
    """Replaces a connection."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        attempt.remaining_s()
        answer: object = self.server.answer
        if not request.is_probe:
            asked = FakeRequest(request.image, request.text.decode("utf-8"), request.request_id)
            self.server.requests.append(asked)
            if callable(answer):
                answer = answer(asked)
        if isinstance(answer, DiptychError):
            raise _of(answer, request)
        attempt.remaining_s()
        labels = self.server.labels
        probabilities = _probabilities(labels[0] if request.is_probe else answer, labels)
        return _reply(request, self.server.model_version, probabilities, labels)

    def describe(self, attempt: Attempt) -> ServerInfo:
        answer = self.server.answer
        if isinstance(answer, (ConnectionFailed, DeadlineExceeded)):
            raise copy.copy(answer)
        is_ready = not isinstance(answer, ModelNotReady)
        return ServerInfo("fake", "0", (self.server.model_version,), is_ready)

    def close(self) -> None:
        """Nothing is held open."""

    def abandon(self) -> None:
        """Nothing is shared with another process."""


def _of(error: DiptychError, request: Request) -> DiptychError:
    """A copy for one request, because the same error may be raised for many."""
    own = copy.copy(error)
    own.request_id = error.request_id or request.request_id
    return own


def _probabilities(answer: object, labels: tuple[str, ...]) -> list[float]:
    """Probabilities of all labels. Raises ValueError for an answer that is impossible with these labels."""
    accepted = (
        f"a label or probabilities of {', '.join(labels)}, a DiptychError, or a function that returns one"
    )
    given = {answer: 1.0} if isinstance(answer, str) else answer
    if not isinstance(given, Mapping) or not set(given) <= set(labels):
        raise ValueError(f"answer: found {answer!r}; accepted: {accepted}")
    rest = 1.0 - sum(given.values())
    num_unnamed = len(labels) - len(given)
    is_whole = math.isclose(rest, 0, abs_tol=1e-3) if num_unnamed == 0 else rest > -1e-3
    if not is_whole or not all(0 <= value <= 1 for value in given.values()):
        raise ValueError(f"answer: found {answer!r}; accepted: probabilities from 0 to 1 that sum to 1")
    return [given.get(label, max(rest, 0.0) / max(num_unnamed, 1)) for label in labels]


def _reply(
    request: Request, model_version: str, probabilities: Sequence[float], labels: Sequence[str]
) -> Reply:
    """In Triton's form."""
    shape = (1, len(labels))
    identity = hashlib.sha256("".join(f"{label}\n" for label in labels).encode("utf-8")).hexdigest()[:16]
    if request.wants_labels:
        strings = (
            f"{score:f}:{index}:{label}"
            for index, (label, score) in enumerate(zip(labels, probabilities, strict=True))
        )
        data = b"".join(pack_bytes(string.encode("utf-8")) for string in strings)
        return Reply(request.request_id, model_version, identity, "BYTES", shape, data)
    data = struct.pack(f"<{len(labels)}f", *probabilities)
    return Reply(request.request_id, model_version, identity, "FP32", shape, data)
