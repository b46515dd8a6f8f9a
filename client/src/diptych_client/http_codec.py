"""One request and one reply as HTTP messages: KServe's v2 protocol with Triton's binary tensors.

No I/O. The body is a JSON header followed by the tensors' own bytes; `Inference-Header-Content-Length` says
where one ends and the other begins. Nothing is base64.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from diptych_client.contract import (
    ALL_CLASSES,
    IMAGE,
    INPUT_SHAPE,
    MODEL,
    PROBABILITIES,
    TEXT,
    Reply,
    Request,
    pack_bytes,
)
from diptych_client.errors import ServerFault, error_from_http

TARGET = f"/v2/models/{MODEL}/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclasses.dataclass(frozen=True)
class HttpRequest:
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclasses.dataclass(frozen=True)
class HttpResponse:
    """Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def encode_request(request: Request) -> HttpRequest:
    image, text = pack_bytes(request.image), pack_bytes(request.text)
    output_parameters: dict[str, Any] = {"binary_data": True}
    if request.wants_labels:
        output_parameters["classification"] = ALL_CLASSES
    header = {
        "id": request.request_id,
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
    return HttpRequest(headers, body)


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


def _describe_input(name: str, packed: bytes) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": "BYTES",
        "shape": list(INPUT_SHAPE),
        "parameters": {"binary_data_size": len(packed)},
    }
