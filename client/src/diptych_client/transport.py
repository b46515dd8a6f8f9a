"""What carries a request to a server and its reply back, and which one a URL asks for."""

from __future__ import annotations

from typing import Protocol

from diptych_client.contract import Reply, Request
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Endpoint


class Transport(Protocol):
    """Safe to share between threads. Raises DiptychError and nothing else."""

    def infer(self, request: Request, deadline: Deadline) -> Reply: ...

    def close(self) -> None: ...


def open_transport(endpoint: Endpoint) -> Transport:
    """Connects lazily, and imports only what the scheme needs: gRPC alone takes longer than all the rest."""
    if endpoint.scheme == "grpc":
        from diptych_client.grpc_transport import GrpcTransport

        return GrpcTransport(endpoint)

    from diptych_client.http_transport import HttpTransport

    return HttpTransport(endpoint)
