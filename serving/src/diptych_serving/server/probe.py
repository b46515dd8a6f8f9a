"""Sends one real request to a server, because health URLs prove little (docs/triton.md, 22)."""

from __future__ import annotations

import enum
import http.client
import json
import socket
import ssl
from typing import NamedTuple

from diptych_serving.errors import UserError
from diptych_serving.repository.layout import ENSEMBLE

TIMEOUT_S = 30.0
# The message of tritonserver 2.51.0 (HTTP 500) if the process of a Python model is gone or stopped.
DEAD_STUB_WORDS = "is not healthy"
# HTTP/2, RFC 9113, 3.4: the client's first bytes, and the kind of the server's first frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER_BYTES, SETTINGS = 9, 4


class Kind(enum.Enum):
    """The result of the request.

    ANSWERED   the ensemble answered
    BUSY       a full queue or a timeout in it: the server runs, the state of its models is unknown
    NOT_THERE  the ensemble is not loaded, for example during a drain
    BROKEN     an error of the server's own
    SILENT     nothing listens, or nothing came in time
    """

    ANSWERED = enum.auto()
    BUSY = enum.auto()
    NOT_THERE = enum.auto()
    BROKEN = enum.auto()
    SILENT = enum.auto()


class Reply(NamedTuple):
    """`words` is the server's message with its HTTP status, or the network's error."""

    kind: Kind
    words: str


def ask(host: str, port: int, timeout_s: float = TIMEOUT_S) -> Reply:
    """Send the smallest item through the whole ensemble."""
    try:
        status, body = request(
            host, port, "POST", f"/v2/models/{ENSEMBLE}/infer", timeout_s, _question(timeout_s)
        )
    except (OSError, http.client.HTTPException) as error:
        return Reply(Kind.SILENT, f"{type(error).__name__}: {error}")
    words = f"HTTP {status}: {body.strip()}"
    if status == http.client.OK:
        return Reply(Kind.ANSWERED, "")
    if status == http.client.SERVICE_UNAVAILABLE:
        return Reply(Kind.BUSY, words)
    if "unknown model" in body or "not at ready state" in body:
        return Reply(Kind.NOT_THERE, words)
    return Reply(Kind.BROKEN, words)


def is_answering(host: str, port: int) -> bool:
    """Whether the ensemble answers; False while nothing listens. Raises UserError if it refuses."""
    reply = ask(host, port)
    if reply.kind in (Kind.BROKEN, Kind.NOT_THERE):
        raise UserError(f"the models are loaded but do not answer: {reply.words}")
    return reply.kind is Kind.ANSWERED


def num_instances(host: str, port: int, model: str, version: str, timeout_s: float) -> int:
    """The number of instances of a model's version; 0 if it is not loaded, or nothing answers."""
    try:
        status, body = request(host, port, "GET", f"/v2/models/{model}/versions/{version}/config", timeout_s)
        groups = json.loads(body).get("instance_group", []) if status == http.client.OK else []
    except (OSError, ValueError, http.client.HTTPException):
        return 0
    return sum(group["count"] * max(1, len(group.get("gpus", []))) for group in groups)


def grpc_responds(host: str, grpc_port: int, *, is_secure: bool, timeout_s: float) -> bool:
    """Whether the gRPC port sends its HTTP/2 settings, or agrees on a TLS key. No call is made."""
    try:
        with socket.create_connection((host, grpc_port), timeout_s) as connection:
            if is_secure:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing secret is sent
                context.set_alpn_protocols(["h2"])
                context.wrap_socket(connection).close()
                return True
            connection.sendall(PREFACE)
            frame = connection.recv(FRAME_HEADER_BYTES)
            return len(frame) == FRAME_HEADER_BYTES and frame[3] == SETTINGS
    except TimeoutError:
        return False
    except ssl.SSLError:
        return True  # an answer: the server asks for our certificate
    except OSError:
        return False


def request(
    host: str,
    port: int,
    method: str,
    path: str,
    timeout_s: float,
    body: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, str]:
    """One HTTP request that ignores proxies, unlike urllib. Returns status and body."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()


def _question(timeout_s: float) -> str:
    """Text alone, with a queue timeout equal to ours."""
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [words]}
        for name, words in (("image", ""), ("text", "ready?"))
    ]
    return json.dumps({"inputs": inputs, "parameters": {"timeout": int(timeout_s * 1e6)}})
