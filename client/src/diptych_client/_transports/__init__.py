"""The ways to reach a server: over gRPC, over HTTP, or a model in this process."""

from __future__ import annotations

from diptych_client._servers import Address
from diptych_client._transports._base import AsyncTransport, Transport, Wire

__all__ = ["AsyncTransport", "Transport", "Wire", "open_async_transport", "open_transport"]


def open_transport(address: Address, wire: Wire) -> Transport:
    """Connects lazily, and imports only what the scheme needs: gRPC alone takes longer than all the rest."""
    if address.scheme == "local":
        from diptych_client._transports._local import LocalTransport

        return LocalTransport(address.endpoint.path)
    if address.scheme in ("grpc", "grpcs"):
        from diptych_client._transports._grpc import GrpcTransport

        return GrpcTransport(address, wire)
    from diptych_client._transports._http import HttpTransport

    return HttpTransport(address, wire)


def open_async_transport(address: Address, wire: Wire) -> AsyncTransport:
    if address.scheme == "local":
        from diptych_client._transports._threaded import ThreadedTransport

        return ThreadedTransport(open_transport(address, wire))
    if address.scheme in ("grpc", "grpcs"):
        from diptych_client._transports._grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(address, wire)
    from diptych_client._transports._http import AsyncHttpTransport

    return AsyncHttpTransport(address, wire)
