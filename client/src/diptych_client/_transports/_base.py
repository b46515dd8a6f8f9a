"""The interface of a transport: it knows one server, sends one message once, and returns the reply.

Which server is asked, and whether to try again, is decided in `_conversation.py`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._retries import Deadline

if TYPE_CHECKING:
    from diptych_client._headers import Headers
    from diptych_client._tls import Tls

# A call that finds no connection within this moves on to another server or tries again.
CONNECT_TIMEOUT_S = 2.0


class Transport(Protocol):
    """Safe to share between threads. Raises DiptychError and nothing else."""

    def infer(self, request: Request, deadline: Deadline) -> Reply:
        """Classify one row. `request.wants_labels` asks for `score:index:label` strings (BYTES [1, C]), else
        the reply holds probabilities (FP32 [1, C])."""
        ...

    def describe(self, deadline: Deadline) -> ServerInfo:
        """Say which server this is and which versions of the model it serves. Runs no inference."""
        ...

    def close(self) -> None:
        """Free everything. Closing twice is harmless."""
        ...


class AsyncTransport(Protocol):
    """The same for one event loop."""

    async def infer(self, request: Request, deadline: Deadline) -> Reply: ...

    async def describe(self, deadline: Deadline) -> ServerInfo: ...

    async def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Wire:
    """What every connection of a client has in common."""

    headers: Headers
    tls: Tls | None
