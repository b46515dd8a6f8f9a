"""HTTP without its socket: KServe's v2 protocol with Triton's binary tensors, and one connection's state.

The body is a JSON header, then the tensors' bytes. `Inference-Header-Content-Length` is the length of the
header. Nothing is base64.

h11 implements the protocol without I/O, so each wait uses the call's deadline, and the blocking and the
async transport share everything but the sockets. Larger libraries do not fit: tritonclient's HTTP client is
not thread-safe and needs gevent; the timeouts of http.client, urllib3 and httpx restart with every packet,
so a slow answer never ends; httpcore's asyncio pool needs anyio, and forks, request ids and retries on
closed connections would still be our code.
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
    LABELS_IDENTITY,
    MODEL,
    PROBABILITIES,
    TEXT,
    Reply,
    Request,
    ServerInfo,
    pack_bytes,
    read_identity,
)
from diptych_client._errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ServerFault,
    error_from_http,
    wrong_answer,
)
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
        "outputs": [
            {"name": PROBABILITIES, "parameters": output_parameters},
            {"name": LABELS_IDENTITY, "parameters": {"binary_data": True}},
        ],
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
    """Raises the server's error, ConnectionFailed for another request's answer, or ServerFault if it is
    unreadable."""
    if response.status != 200:
        raise _error_of(response, request_id)
    try:
        header_length = int(response.headers.get(HEADER_LENGTH.lower(), len(response.body)))
        header = json.loads(response.body[:header_length])
        if header.get("id", "") != request_id:
            raise wrong_answer(header.get("id", ""), request_id)
        tensors = dict(_tensors(header["outputs"], response.body[header_length:]))
        output, data = tensors[PROBABILITIES]
        labels, labels_data = tensors[LABELS_IDENTITY]
        identity = read_identity(_shape_of(labels), labels_data, request_id)
        shape = _shape_of(output)
        return Reply(request_id, header["model_version"], identity, output["datatype"], shape, data)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        message = f"an answer that is not Triton's: {type(error).__name__}: {error}"
        raise ServerFault(message, request_id) from error


def may_be_kept(error: Exception) -> bool:
    """Whether the connection can be used again: the server only refused this request."""
    return isinstance(error, DiptychError) and not isinstance(error, (ConnectionFailed, DeadlineExceeded))


def is_ready(response: HttpResponse) -> bool:
    """Raises the error of any status except Triton's 200 and 400."""
    if response.status not in (200, 400):
        raise _error_of(response, None)
    return response.status == 200


def decode_info(server: dict[str, Any], model: dict[str, Any] | None) -> ServerInfo:
    """model  None if the model is not ready: then Triton does not describe it"""
    versions = () if model is None else tuple(str(version) for version in model.get("versions", ()))
    name, version = (str(server.get(key, "")) for key in ("name", "version"))
    return ServerInfo(name, version, versions, model is not None)


def json_of(response: HttpResponse) -> dict[str, Any]:
    """Raises the server's error, or ServerFault."""
    if response.status != 200:
        raise _error_of(response, None)
    try:
        value = json.loads(response.body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerFault("an answer that is not Triton's: no JSON object")
    return value


def _error_of(response: HttpResponse, request_id: str | None) -> DiptychError:
    return error_from_http(response.status, response.body, request_id, response.headers.get("retry-after"))


def _tensors(outputs: Any, rest: bytes) -> Iterator[tuple[str, tuple[dict[str, Any], bytes]]]:
    """Each output with its bytes, by name. The bytes are in the order of the header."""
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        if not 0 <= size <= len(rest):
            raise ValueError(f"{len(rest)} bytes of tensors, not {size}")
        yield output["name"], (output, rest[:size])
        rest = rest[size:]
    if rest:
        raise ValueError(f"{len(rest)} bytes behind the tensors")


def _shape_of(output: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in output["shape"])


def _describe_input(name: str, packed: bytes) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": "BYTES",
        "shape": list(INPUT_SHAPE),
        "parameters": {"binary_data_size": len(packed)},
    }


RECEIVE_BYTES = 64 * 1024  # an answer is a few hundred bytes

# httpx's default. A stopping Triton waits for open connections, so idle ones must be closed soon.
KEEP_IDLE_S = 5.0

# Errors at the next use of a connection that the server has closed.
HUNG_UP = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
FAILURES = (OSError, h11.RemoteProtocolError)


class HttpProtocol:
    """For one request at a time.

    prefix     a gateway's prefix of each target
    has_heard  whether any byte of the current answer has arrived
    """

    def __init__(self, authority: str, prefix: str = "") -> None:
        self._authority = authority
        self._prefix = prefix
        self._connection = h11.Connection(h11.CLIENT)
        self._head: h11.Response | None = None
        self._body: list[bytes] = []
        self.idle_until_s = 0.0
        self.has_heard = False

    def send(self, request: HttpRequest, extra: tuple[tuple[str, str], ...]) -> Iterator[bytes]:
        """What to write, in parts. `extra` are the caller's headers."""
        self.has_heard = False
        self._head, self._body = None, []
        ours = (("Host", self._authority), ("User-Agent", "diptych-client"), *request.headers)
        theirs = [(name, value) for name, value in extra if name != "user-agent"]
        events: list[h11.Event] = [
            h11.Request(method=request.method, target=self._prefix + request.target, headers=[*ours, *theirs])
        ]
        if request.body:
            events.append(h11.Data(data=request.body))
        for event in (*events, h11.EndOfMessage()):
            if data := self._connection.send(event):
                yield data

    def receive(self, data: bytes) -> HttpResponse | None:
        """Take the read bytes, b"" for the end of the stream; return the answer when it is complete.

        Raises h11.RemoteProtocolError, or ConnectionResetError if the stream ended too early.
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
        if self._connection.trailing_data[0]:  # unrequested bytes would become the next answer
            return False
        self._connection.start_next_cycle()
        self.idle_until_s = time.monotonic() + KEEP_IDLE_S
        return True

    def _read_events(self) -> HttpResponse | None:
        while True:
            event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED] = self._connection.next_event()
            if isinstance(event, h11.Response):
                self._head = event
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None  # h11 cannot end a message that has not started
                pairs = self._head.headers  # names in lower case
                headers = {name.decode("ascii"): value.decode("latin-1") for name, value in pairs}
                return HttpResponse(self._head.status_code, headers, b"".join(self._body))
            elif event is h11.NEED_DATA:
                return None
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("the server ended or left the protocol")


def explain(error: Exception, address: Address, request_id: str | None) -> DiptychError:
    """Our error for one of FAILURES."""
    if isinstance(error, h11.RemoteProtocolError):
        message = f"no HTTP/1.1 comes from there ({error}). Is it the gRPC port?"
    else:
        message = str((isinstance(error, OSError) and error.strerror) or error)
    return ConnectionFailed(f"{address}: {message}", request_id)
