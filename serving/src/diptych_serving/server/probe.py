"""Asks a server one real question. Health URLs say 200 even where a model's process is dead."""

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
# tritonserver 2.51.0's words, as HTTP 500, to a request for a Python model whose process is gone or stopped.
DEAD_STUB_WORDS = "is not healthy"
# HTTP/2, RFC 9113, 3.4: what a client says first, and the kind of frame that a server has to say first.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
FRAME_HEADER_BYTES, SETTINGS = 9, 4


class Kind(enum.Enum):
    """What became of the question.

    ANSWERED   the ensemble answered
    BUSY       a full queue, or time over in it: the server is there and says nothing about its models
    NOT_THERE  the ensemble is not loaded: being drained, or not to be served
    BROKEN     an error of the server's own
    SILENT     nothing listens, or nothing came in time
    """

    ANSWERED = enum.auto()
    BUSY = enum.auto()
    NOT_THERE = enum.auto()
    BROKEN = enum.auto()
    SILENT = enum.auto()


class Reply(NamedTuple):
    """`words` are the server's, with its HTTP status; or the network's."""

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
    """Whether the ensemble answers; False while nothing listens. Raises UserError where it refuses."""
    reply = ask(host, port)
    if reply.kind in (Kind.BROKEN, Kind.NOT_THERE):
        raise UserError(f"the models are loaded but do not answer: {reply.words}")
    return reply.kind is Kind.ANSWERED


def num_instances(host: str, port: int, model: str, version: str, timeout_s: float) -> int:
    """How many instances a version of a model has; 0 where it is not loaded, or nothing answers."""
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
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told to it
                context.set_alpn_protocols(["h2"])
                context.wrap_socket(connection).close()
                return True
            connection.sendall(PREFACE)
            frame = connection.recv(FRAME_HEADER_BYTES)
            return len(frame) == FRAME_HEADER_BYTES and frame[3] == SETTINGS
    except TimeoutError:
        return False
    except ssl.SSLError:
        return True  # an answer: it wants a certificate of ours
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
    """One HTTP request; unlike urllib's, past any proxy. Returns status and body."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()


def _question(timeout_s: float) -> str:
    """Words alone. Triton drops it from its queue once we have stopped waiting."""
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [words]}
        for name, words in (("image", ""), ("text", "ready?"))
    ]
    return json.dumps({"inputs": inputs, "parameters": {"timeout": int(timeout_s * 1e6)}})
