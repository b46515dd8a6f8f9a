"""The interface of a transport: sends one message once to one server, and returns the reply.

`_exchange.py` chooses the server and decides on retries.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._headers import Pairs
from diptych_client._retries import Deadline


@dataclasses.dataclass(frozen=True)
class Attempt:
    """How one message is sent.

    connect_timeout_s  seconds to connect, if there is no connection yet
    request_id         for errors; None if the message has none
    """

    deadline: Deadline
    connect_timeout_s: float
    headers: Pairs
    request_id: str | None = None

    def remaining_s(self) -> float:
        """Raises DeadlineExceeded if no time is left."""
        return self.deadline.remaining_s(self.request_id)


class Transport(Protocol):
    """Safe to share between threads. Raises only DiptychError."""

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Classify one row. `request.wants_labels` asks for `score:index:label` strings (BYTES [1, C]), else
        the reply holds probabilities (FP32 [1, C])."""
        ...

    def describe(self, attempt: Attempt) -> ServerInfo:
        """The server's name and version, and its model versions. Runs no inference."""
        ...

    def close(self) -> None:
        """Free everything. Closing twice is harmless."""
        ...

    def abandon(self) -> None:
        """Abandon the parent's connections in a forked child, without a message to the server."""
        ...


class AsyncTransport(Protocol):
    """The same for one event loop."""

    async def infer(self, request: Request, attempt: Attempt) -> Reply: ...

    async def describe(self, attempt: Attempt) -> ServerInfo: ...

    async def close(self) -> None: ...
