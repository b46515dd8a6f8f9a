"""The interface of a transport: it knows one server, sends one message once, and returns the reply.

Which server is asked, and whether to try again, is decided in `_exchange.py`.
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

    connect_timeout_s  how long connecting may take, where there is no connection yet
    request_id         for errors; None where the message has none
    """

    deadline: Deadline
    connect_timeout_s: float
    headers: Pairs
    request_id: str | None = None

    def remaining_s(self) -> float:
        """Raises DeadlineExceeded where there is nothing left."""
        return self.deadline.remaining_s(self.request_id)


class Transport(Protocol):
    """Safe to share between threads. Raises DiptychError and nothing else."""

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Classify one row. `request.wants_labels` asks for `score:index:label` strings (BYTES [1, C]), else
        the reply holds probabilities (FP32 [1, C])."""
        ...

    def describe(self, attempt: Attempt) -> ServerInfo:
        """Say which server this is and which versions of the model it serves. Runs no inference."""
        ...

    def close(self) -> None:
        """Free everything. Closing twice is harmless."""
        ...

    def abandon(self) -> None:
        """Let go, in a forked child, of what the parent opened, without a word to the server."""
        ...


class AsyncTransport(Protocol):
    """The same for one event loop."""

    async def infer(self, request: Request, attempt: Attempt) -> Reply: ...

    async def describe(self, attempt: Attempt) -> ServerInfo: ...

    async def close(self) -> None: ...
