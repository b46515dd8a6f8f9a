"""HTTP without its socket: KServe's v2 protocol with Triton's binary tensors, and one connection's state.

The body is a JSON header followed by the tensors' own bytes. `Inference-Header-Content-Length` says where one
ends and the other begins. Nothing is base64.

h11 does the protocol's work. Why not a larger library: tritonclient's HTTP half is not thread-safe and brings
gevent, and the timeouts of http.client, urllib3 and httpx start anew with every packet, so a server that
trickles its answer holds a caller for ever. httpcore with a network backend that clamps each operation to the
call's deadline would bring the pool and its checks, but the deadline would reach a shared connection's
streams through a context variable, its asyncio pool needs anyio, and forks, request ids and the retry on a
closed connection would still be ours. h11 does no I/O: each wait asks the call's one deadline, and the
blocking and the async transport share all but the sockets.
"""

from __future__ import annotations

import dataclasses
import json
import ssl
import time
from collections.abc import Iterator
from typing import Any

import h11

from diptych_client._answer import (
    ALL_CLASSES,
    IMAGE,
    INPUT_SHAPE,
    MODEL,
    PROBABILITIES,
    TEXT,
    Reply,
    Request,
    ServerInfo,
    pack_bytes,
)
from diptych_client._errors import ConnectionFailed, DiptychError, ServerFault, error_from_http
from diptych_client._servers import Address

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclasses.dataclass(frozen=True)
class HttpRequest:
    target: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclasses.dataclass(frozen=True)
class HttpResponse:
    """Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


SERVER_METADATA = HttpRequest("/v2")
MODEL_READY = HttpRequest(f"/v2/models/{MODEL}/ready")
MODEL_METADATA = HttpRequest(f"/v2/models/{MODEL}")


def encode_request(request: Request, timeout_s: float) -> HttpRequest:
    """timeout_s  how long the request may wait in Triton's queue, which drops it after that"""
    image, text = pack_bytes(request.image), pack_bytes(request.text)
    output_parameters: dict[str, Any] = {"binary_data": True}
    if request.wants_labels:
        output_parameters["classification"] = ALL_CLASSES
    header = {
        "id": request.request_id,
        "parameters": {"timeout": max(1, int(1e6 * timeout_s))},  # microseconds
        "inputs": [_describe_input(IMAGE, image), _describe_input(TEXT, text)],
        "outputs": [{"name": PROBABILITIES, "parameters": output_parameters}],
    }
    header_bytes = json.dumps(header).encode("ascii")
    body = b"".join((header_bytes, image, text))
    headers = (
        ("Content-Type", "application/octet-stream"),
        ("Content-Length", str(len(body))),
        (HEADER_LENGTH, str(len(header_bytes))),
    )
    return HttpRequest(f"/v2/models/{MODEL}/infer", "POST", headers, body)


def decode_response(response: HttpResponse, request_id: str) -> Reply:
    """Raises what the server's error stands for, or ServerFault where the answer cannot be read."""
    if response.status != 200:
        raise error_from_http(response.status, response.body, request_id)
    try:
        header_length = int(response.headers.get(HEADER_LENGTH.lower(), len(response.body)))
        header = json.loads(response.body[:header_length])
        (output,) = header["outputs"]
        data = response.body[header_length:]
        if len(data) != output["parameters"]["binary_data_size"]:
            raise ValueError(f"{len(data)} bytes of tensors, not {output['parameters']['binary_data_size']}")
        shape = tuple(int(size) for size in output["shape"])
        return Reply(request_id, header["model_version"], output["datatype"], shape, data)
    except (ValueError, LookupError, TypeError) as error:
        message = f"an answer that is not Triton's: {type(error).__name__}: {error}"
        raise ServerFault(message, request_id) from error


def is_ready(response: HttpResponse) -> bool:
    """Raises what any status but Triton's yes (200) and no (400) stands for."""
    if response.status not in (200, 400):
        raise error_from_http(response.status, response.body, None)
    return response.status == 200


def decode_info(server: HttpResponse, model: HttpResponse | None) -> ServerInfo:
    """model  None where the model is not ready, for then Triton does not describe it"""
    metadata = _json_of(server)
    versions = () if model is None else tuple(str(version) for version in _json_of(model).get("versions", ()))
    name, version = (str(metadata.get(key, "")) for key in ("name", "version"))
    return ServerInfo(name, version, versions, model is not None)


def _json_of(response: HttpResponse) -> dict[str, Any]:
    if response.status != 200:
        raise error_from_http(response.status, response.body, None)
    try:
        value = json.loads(response.body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerFault("an answer that is not Triton's: no JSON object")
    return value


def _describe_input(name: str, packed: bytes) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": "BYTES",
        "shape": list(INPUT_SHAPE),
        "parameters": {"binary_data_size": len(packed)},
    }


RECEIVE_BYTES = 64 * 1024  # an answer is a few hundred bytes

# httpx's default. A stopping Triton waits for open connections, so those of a past rush must not linger.
KEEP_IDLE_S = 5.0

# How a connection that the server has closed meanwhile shows itself at its next use.
HUNG_UP = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
FAILURES = (OSError, h11.RemoteProtocolError)


class HttpProtocol:
    """For one request at a time.

    has_heard  whether any byte of the current answer has come
    """

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._connection = h11.Connection(h11.CLIENT)
        self._head: h11.Response | None = None
        self._body: list[bytes] = []
        self._idle_since_s = 0.0
        self.has_heard = False

    @property
    def has_idled_too_long(self) -> bool:
        return time.monotonic() - self._idle_since_s > KEEP_IDLE_S

    def send(self, request: HttpRequest, extra: tuple[tuple[str, str], ...]) -> Iterator[bytes]:
        """What to write, in parts. `extra` are the caller's headers."""
        self.has_heard = False
        self._head, self._body = None, []
        ours = (("Host", self._authority), ("User-Agent", "diptych-client"), *request.headers)
        theirs = [(name, value) for name, value in extra if name != "user-agent"]
        events: list[h11.Event] = [
            h11.Request(method=request.method, target=request.target, headers=[*ours, *theirs])
        ]
        if request.body:
            events.append(h11.Data(data=request.body))
        for event in (*events, h11.EndOfMessage()):
            if data := self._connection.send(event):
                yield data

    def receive(self, data: bytes) -> HttpResponse | None:
        """Take what was read, b"" for the end of the stream; return the answer once it is whole.

        Raises h11.RemoteProtocolError, or ConnectionResetError where the stream ended too early.
        """
        self.has_heard = self.has_heard or bool(data)
        self._connection.receive_data(data)
        try:
            return self._read_events()
        except h11.RemoteProtocolError:
            if data:
                raise
            how = "in the middle of" if self.has_heard else "without"
            raise ConnectionResetError(f"the server closed the connection {how} an answer") from None

    def start_next_cycle(self) -> bool:
        """Whether the connection can carry another request; if so, it is ready for it."""
        if self._connection.our_state is not h11.DONE or self._connection.their_state is not h11.DONE:
            return False
        self._connection.start_next_cycle()
        self._idle_since_s = time.monotonic()
        return True

    def _read_events(self) -> HttpResponse | None:
        while True:
            event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED] = self._connection.next_event()
            if isinstance(event, h11.Response):
                self._head = event
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None  # h11 lets no message end that has not begun
                pairs = self._head.headers  # names in lower case
                headers = {name.decode("ascii"): value.decode("latin-1") for name, value in pairs}
                return HttpResponse(self._head.status_code, headers, b"".join(self._body))
            elif event is h11.NEED_DATA:
                return None


def explain(error: Exception, address: Address, request_id: str | None) -> DiptychError:
    """Ours for one of FAILURES."""
    if isinstance(error, h11.RemoteProtocolError):
        message = f"no HTTP/1.1 comes from there ({error}). Is it the gRPC port?"
    else:
        message = str((isinstance(error, OSError) and error.strerror) or error)
    return ConnectionFailed(f"{address}: {message}", request_id)
