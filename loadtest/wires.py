"""Sends encoded requests over gRPC and HTTP, in the client's own wire format.

`diptych_client.Client` is not used: it retries, which a load test must not, and it refuses some corrupt
inputs before sending. A payload is completely encoded before the clock starts.

Import after Locust, whose gevent patches the sockets of everything below.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import grpc.experimental.gevent
from geventhttpclient import HTTPClient
from tritonclient.grpc.service_pb2 import ModelInferResponse

from diptych_client import InvalidInput
from diptych_client._answer import Request
from diptych_client._environment import headers_of, tls_of
from diptych_client._headers import Headers
from diptych_client._tls import Tls
from diptych_client._transports import _grpc_wire, _http_wire
from diptych_serving.errors import UserError

GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"
# Photos are larger than gRPC's default of 4 MiB; and without this a proxy would be tested.
GRPC_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


# Removed from Triton's errors, because Locust counts failures by message.
_REQUEST_ID = re.compile(r"\[request id: [^\]]*\] ")


class CallFailed(Exception):
    """The call failed. `status` is a gRPC name, an HTTP number, or the name of an OSError."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {_REQUEST_ID.sub('', message)}")
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """One request as it goes over the wire; over HTTP with a target and headers."""

    request_id: str
    body: bytes
    target: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """The common part of all calls of a run. Header values may be secrets.

    tls  None: not encrypted
    """

    tls: Tls | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


NO_ACCESS = Access()


class Wire(Protocol):
    """One server. Any number of greenlets may send at once."""

    name: str
    refusal: str  # the status of a caller's error

    def encode(self, request: Request) -> Encoded: ...

    def send(self, encoded: Encoded) -> Any:
        """The raw answer. Raises CallFailed."""
        ...

    def check(self, encoded: Encoded, answer: Any) -> int:
        """Check an answer and return its size in bytes; not timed."""
        ...


class GrpcWire:
    """One channel for all users."""

    name = "gRPC"
    refusal = "INVALID_ARGUMENT"

    def __init__(
        self, authority: str, *, timeout_s: float, num_connections: int, access: Access = NO_ACCESS
    ) -> None:
        # Before the first channel. Not at import: Locust's --processes forks after that.
        grpc.experimental.gevent.init_gevent()
        self._timeout_s = timeout_s
        self._metadata = tuple(access.headers.items())
        if access.tls is None:
            channel = grpc.insecure_channel(authority, options=GRPC_OPTIONS)
        else:
            channel = grpc.secure_channel(authority, access.tls.grpc_credentials(), options=GRPC_OPTIONS)
        self._infer = channel.unary_unary(GRPC_METHOD)

    def encode(self, request: Request) -> Encoded:
        body = _grpc_wire.encode_request(request, self._timeout_s).SerializeToString()
        return Encoded(request_id=request.request_id, body=body)

    def send(self, encoded: Encoded) -> bytes:
        try:
            answer: bytes = self._infer(encoded.body, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise CallFailed(error.code().name, error.details()) from None
        return answer

    def check(self, encoded: Encoded, answer: bytes) -> int:
        message = ModelInferResponse.FromString(answer)
        _grpc_wire.decode_response(message, encoded.request_id).floats()
        return len(answer)


class HttpWire:
    """A pool of connections, one for each call in flight."""

    name = "HTTP"
    refusal = "400"

    def __init__(
        self, authority: str, *, timeout_s: float, num_connections: int, access: Access = NO_ACCESS
    ) -> None:
        self._timeout_s = timeout_s
        self._headers = access.headers
        context = access.tls.ssl_context() if access.tls else None
        server = urlsplit(f"//{authority}")
        self._client = HTTPClient(
            server.hostname or "",
            server.port,
            concurrency=num_connections,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
            ssl=context is not None,
            ssl_context_factory=lambda: context,
        )

    def encode(self, request: Request) -> Encoded:
        message = _http_wire.encode_request(request, self._timeout_s)
        return Encoded(
            request_id=request.request_id,
            target=message.target,
            headers={**dict(message.headers), **self._headers},
            body=message.body,
        )

    def send(self, encoded: Encoded) -> _http_wire.HttpResponse:
        try:
            response = self._client.request("POST", encoded.target, encoded.body, encoded.headers)
            body = bytes(response.read())
        except OSError as error:  # timeouts included
            raise CallFailed(type(error).__name__, str(error)) from None
        if response.status_code != 200:
            raise CallFailed(str(response.status_code), body.decode("utf-8", "replace"))
        headers = {name.lower(): value for name, value in response.items()}
        return _http_wire.HttpResponse(response.status_code, headers, body)

    def check(self, encoded: Encoded, answer: _http_wire.HttpResponse) -> int:
        _http_wire.decode_response(answer, encoded.request_id).floats()
        return len(answer.body)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """protocol  "grpc" or "http" """

    protocol: str
    is_secure: bool
    authority: str


def parse_host(host: str | None) -> Host:
    """The server's address; its scheme is the protocol, with or without TLS."""
    parts = urlsplit(host or "")
    protocol = parts.scheme.removesuffix("s")
    if protocol not in ("grpc", "http") or not parts.hostname or not parts.port:
        raise UserError(
            f"--host: found {host!r}; accepted: grpc://ADDRESS:PORT or http://ADDRESS:PORT, "
            "with TLS grpcs:// or https://"
        )
    return Host(protocol=protocol, is_secure=parts.scheme != protocol, authority=parts.netloc)


def access_of(host: Host, environment: Mapping[str, str]) -> Access:
    """Headers and files for TLS, from the environment variables of `diptych-client`. Raises UserError."""
    try:
        tls = (tls_of(environment) or Tls()) if host.is_secure else None
        if tls is not None:
            tls.ssl_context()  # report a broken file before the run
        return Access(tls=tls, headers=dict(Headers(headers_of(environment)).pairs()))
    except InvalidInput as error:
        raise UserError(str(error)) from None
