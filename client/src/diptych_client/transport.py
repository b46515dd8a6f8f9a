"""What carries one message to one server and its reply back, and which carrier a URL asks for.

A transport knows one server and tries once. Which server, and whether to try again, is `exchange.py`'s.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Optional, Protocol

from diptych_client.contract import Reply, Request, ServerInfo
from diptych_client.deadline import Deadline

if TYPE_CHECKING:
    from diptych_client.endpoint import Address
    from diptych_client.headers import Headers
    from diptych_client.tls import Tls

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
    tls: Optional[Tls]


def open_transport(address: Address, wire: Wire) -> Transport:
    """Connects lazily, and imports only what the scheme needs: gRPC alone takes longer than all the rest."""
    if address.scheme == "local":
        from diptych_client.local import LocalTransport

        return LocalTransport(address.endpoint.path)
    if address.scheme in ("grpc", "grpcs"):
        from diptych_client.grpc_transport import GrpcTransport

        return GrpcTransport(address, wire)
    from diptych_client.http_transport import HttpTransport

    return HttpTransport(address, wire)


def open_async_transport(address: Address, wire: Wire) -> AsyncTransport:
    if address.scheme == "local":
        from diptych_client.threaded_transport import ThreadedTransport

        return ThreadedTransport(open_transport(address, wire))
    if address.scheme in ("grpc", "grpcs"):
        from diptych_client.grpc_async_transport import AsyncGrpcTransport

        return AsyncGrpcTransport(address, wire)
    from diptych_client.http_async_transport import AsyncHttpTransport

    return AsyncHttpTransport(address, wire)
