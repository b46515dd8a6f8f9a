"""The ways to reach a server: over gRPC, over HTTP, or a model in this process."""

from __future__ import annotations

from diptych_client._servers import LOCAL, Address
from diptych_client._tls import Tls
from diptych_client._transports._base import AsyncTransport, Attempt, Transport

__all__ = ["AsyncTransport", "Attempt", "Transport", "open_async_transport", "open_transport"]


def open_transport(address: Address, tls: Tls | None) -> Transport:
    """Connects lazily, and imports only what the scheme needs, because importing gRPC is slow."""
    if address.scheme == LOCAL:
        from diptych_client._transports._local import LocalTransport

        return LocalTransport(address.endpoint.path)
    if address.scheme in ("grpc", "grpcs"):
        from diptych_client._transports._grpc import GrpcTransport

        return GrpcTransport(address, tls)
    from diptych_client._transports._http import HttpTransport

    return HttpTransport(address, tls)


def open_async_transport(address: Address, tls: Tls | None) -> AsyncTransport:
    if address.scheme == LOCAL:
        from diptych_client._transports._threaded import ThreadedTransport

        return ThreadedTransport(open_transport(address, tls))
    if address.scheme in ("grpc", "grpcs"):
        from diptych_client._transports._grpc_async import AsyncGrpcTransport

        return AsyncGrpcTransport(address, tls)
    from diptych_client._transports._http_async import AsyncHttpTransport

    return AsyncHttpTransport(address, tls)
