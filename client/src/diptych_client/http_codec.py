"""Requests and replies as HTTP messages: KServe's v2 protocol with Triton's binary tensors.

No I/O. The body is a JSON header followed by the tensors' own bytes; `Inference-Header-Content-Length` says
where one ends and the other begins. Nothing is base64.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Optional

from diptych_client.contract import (
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
from diptych_client.errors import ServerFault, error_from_http

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


def decode_info(server: HttpResponse, model: Optional[HttpResponse]) -> ServerInfo:
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
