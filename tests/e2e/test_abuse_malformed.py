"""Requests that break the protocol, over both wires: a clean error each, and the next request is answered."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from diptych_serving.server import Server
from tests.helpers.raw_wire import Item, ask_over_grpc, ask_over_http, grpc_channel, tells_of_our_insides

HANG_S = 60
INFER = "/v2/models/classifier/infer"
ELEMENT = struct.pack("<I", 9) + b"a red cat"


def tensor(name: str = "text", **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": ["a red cat"], **changes}


def binary(size: Any, **changes: Any) -> dict[str, Any]:
    """An input whose bytes follow the JSON."""
    described = tensor(parameters={"binary_data_size": size}, **changes)
    del described["data"]
    return described


def body(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


# What is sent as JSON, with nothing behind it.
JSON_BODIES = {
    "nothing": b"",
    "no JSON": b"\x00\xff\x00\xff",
    "truncated JSON": body(tensor())[:-9],
    "JSON twice": body(tensor()) * 2,
    "a list": b"[]",
    "a number": b"1e999",
    "deep nesting": b'{"inputs":' + b"[" * 5_000,
    "no inputs": b"{}",
    "inputs of another kind": b'{"inputs": {"name": "text"}}',
    "an empty list of inputs": body(),
    "an input that is no object": body(7),
    "an input without a name": body({"datatype": "BYTES", "shape": [1, 1], "data": ["a"]}),
    "an unknown input": body(tensor("sound")),
    "the same input twice": body(tensor(), tensor()),
    "no shape": body({"name": "text", "datatype": "BYTES", "data": ["a"]}),
    "an empty shape": body(tensor(shape=[])),
    "one dimension too few": body(tensor(shape=[1])),
    "one dimension too many": body(tensor(shape=[1, 1, 1])),
    "two texts in a row": body(tensor(shape=[1, 2], data=["a", "b"])),
    "zero rows": body(tensor(shape=[0, 1], data=[])),
    "a negative size": body(tensor(shape=[-1, 1])),
    "two negative sizes": body(tensor(shape=[-1, -1])),
    "a size beyond 64 bits": body(tensor(shape=[2**70, 1])),
    "sizes whose product overflows": body(tensor(shape=[2**33, 2**33])),
    "a size in words": body(tensor(shape=["one", 1])),
    "a fractional size": body(tensor(shape=[1.5, 1])),
    "more rows than data": body(tensor(shape=[2, 1])),
    "more data than rows": body(tensor(data=["a", "b"])),
    "more rows than a batch holds": body(tensor(shape=[33, 1], data=["a"] * 33)),
    "a million rows": body(tensor(shape=[1_000_000, 1], data=["a"] * 1_000_000)),
    "a million rows without data": body(tensor(shape=[1_000_000, 1], data=[])),
    "inputs of different rows": body(tensor("image", data=[""]), tensor(shape=[2, 1], data=["a", "b"])),
    "another type": body(tensor(datatype="FP32", data=[1.0])),
    "an unknown type": body(tensor(datatype="BYTE")),
    "numbers for strings": body(tensor(data=[12])),
    "null for a string": body(tensor(data=[None])),
    "an unknown output": body(tensor(), outputs=[{"name": "price"}]),
    "a negative number of classes": body(
        tensor(), outputs=[{"name": "probabilities", "parameters": {"classification": -1}}]
    ),
    "shared memory that nobody registered": body(
        tensor(parameters={"shared_memory_region": "x", "shared_memory_byte_size": 8})
    ),
}

# (JSON, length of the JSON as the header says, what follows it)
BINARY_BODIES: dict[str, tuple[bytes, Any, bytes]] = {
    "fewer bytes than said": (body(binary(100)), None, ELEMENT),
    "more bytes than said": (body(binary(4)), None, ELEMENT),
    "bytes after the last": (body(binary(len(ELEMENT))), None, ELEMENT + b"\0" * 100),
    "a negative size": (body(binary(-1)), None, ELEMENT),
    "a size beyond all memory": (body(binary(2**62)), None, ELEMENT),
    "a size in words": (body(binary("13")), None, ELEMENT),
    "an element longer than its tensor": (
        body(binary(13)),
        None,
        struct.pack("<I", 2**32 - 1) + b"a red cat",
    ),
    "an element longer by one": (body(binary(13)), None, struct.pack("<I", 10) + b"a red cat"),
    "an element shorter by one": (body(binary(13)), None, struct.pack("<I", 8) + b"a red cat"),
    "a length without its fourth byte": (body(binary(3)), None, b"\1\0\0"),
    "no bytes at all": (body(binary(0)), None, b""),
    "one element for two rows": (body(binary(13, shape=[2, 1])), None, ELEMENT),
    "a million rows": (body(binary(4_000_000, shape=[1_000_000, 1])), None, bytes(4_000_000)),
    "a JSON longer than all": (body(binary(13)), 10**6, ELEMENT),
    "a JSON of huge length": (body(binary(13)), 2**63, ELEMENT),
    "a JSON of negative length": (body(binary(13)), -5, ELEMENT),
    "a JSON of a length in words": (body(binary(13)), "many", ELEMENT),
    "a JSON cut by its length": (body(binary(13)), 20, ELEMENT),
}
PATHS = [
    "/v2/models/classifier/versions/999/infer",
    "/v2/models/classifier/versions/latest/infer",
    "/v2/models/classifier/versions/99999999999999999999/infer",
    "/v2/models/nothing/infer",
    "/v2/models/..%2f..%2fetc%2fpasswd/infer",
    "/v2/models/" + "a" * 5_000 + "/infer",
    "/v2/" + "%00" * 20,
]


@pytest.fixture(scope="module")
def good(server: Server, items: list[Item]) -> tuple[Item, NDArray[np.float32]]:
    return items[0], ask_over_http(server, *items[0])


@pytest.fixture(autouse=True)
def answers_on(server: Server, good: tuple[Item, NDArray[np.float32]]) -> Iterator[None]:
    """After each of these tests, a good request has its usual answer over both wires, of the same process."""
    yield
    item, expected = good
    np.testing.assert_allclose(ask_over_http(server, *item), expected, rtol=0, atol=1e-5)
    with grpc_channel(server) as channel:
        np.testing.assert_allclose(ask_over_grpc(channel, *item), expected, rtol=0, atol=1e-5)
    assert server.process.poll() is None


def post(server: Server, path: str, content: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.contact, server.ports.http, timeout=HANG_S)
    try:
        connection.request("POST", path, content, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()


def check_refused(status: int, message: str) -> None:
    """tritonserver calls JSON that it cannot parse an internal error, 500; yet it is its sender's."""
    assert 400 <= status <= 500, (status, message)
    assert not tells_of_our_insides(message), message


@pytest.mark.parametrize("name", JSON_BODIES)
def test_http_refuses_json_that_holds(server: Server, name: str) -> None:
    check_refused(*post(server, INFER, JSON_BODIES[name]))


@pytest.mark.parametrize("name", BINARY_BODIES)
def test_http_refuses_binary_tensors_with(server: Server, name: str) -> None:
    header, length, content = BINARY_BODIES[name]
    headers = {"Inference-Header-Content-Length": str(len(header) if length is None else length)}
    check_refused(*post(server, INFER, header + content, headers))


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_http_refuses_paths_that_lead_nowhere(server: Server, path: str) -> None:
    check_refused(*post(server, path, body(tensor())))


def test_slow_and_endless_uploads_hinder_nobody(
    server: Server, good: tuple[Item, NDArray[np.float32]]
) -> None:
    """tritonserver waits for a body as long as its sender likes; a proxy ends that (docs/security.md)."""
    item, expected = good
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{{"
    starts = [b"POST ", (head % 10**15).encode(), (head % 1000).encode(), b"GET / HTTP/1.1\r\nA: "]
    address = (server.contact, server.ports.http)
    waiting = [socket.create_connection(address, timeout=HANG_S) for _ in range(60)]
    try:
        for number, connection in enumerate(waiting):
            connection.sendall(starts[number % len(starts)])
        for _ in range(5):
            for connection in waiting[2::4]:
                connection.sendall(b" ")
            np.testing.assert_allclose(ask_over_http(server, *item), expected, rtol=0, atol=1e-5)
            time.sleep(0.05)
    finally:
        for connection in waiting:
            connection.close()


def request(**changes: Any) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(model_name="classifier")
    described = made.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    for field, value in changes.items():
        if field == "raw":
            made.raw_input_contents.extend(value)
        elif field == "shape":
            described.shape[:] = value
        else:
            setattr(described if field in ("name", "datatype") else made, field, value)
    return made


def with_contents(field: str, values: list[Any], **changes: Any) -> service_pb2.ModelInferRequest:
    made = request(**changes)
    getattr(made.inputs[0].contents, field).extend(values)
    return made


GRPC_REQUESTS = {
    "nothing": service_pb2.ModelInferRequest(),
    "no inputs": service_pb2.ModelInferRequest(model_name="classifier"),
    "no data": request(),
    "data in both ways": with_contents("bytes_contents", [b"a"], raw=[ELEMENT]),
    "data of another type": with_contents("int64_contents", [1]),
    "two elements for one row": with_contents("bytes_contents", [b"a", b"b"]),
    "an unknown input": request(name="sound", raw=[ELEMENT]),
    "another type": request(datatype="FP32", raw=[ELEMENT]),
    "an unknown type": request(datatype="BYTE", raw=[ELEMENT]),
    "an empty shape": request(shape=[], raw=[ELEMENT]),
    "a negative size": request(shape=[-1, 1], raw=[ELEMENT]),
    "two negative sizes": request(shape=[-1, -1], raw=[ELEMENT]),
    "sizes whose product overflows": request(shape=[2**33, 2**33], raw=[ELEMENT]),
    "the largest size": request(shape=[2**63 - 1, 1], raw=[ELEMENT]),
    "zero rows": request(shape=[0, 1], raw=[b""]),
    "more rows than a batch holds": request(shape=[33, 1], raw=[ELEMENT * 33]),
    "a million rows": request(shape=[1_000_000, 1], raw=[bytes(4_000_000)]),
    "a million rows without data": request(shape=[1_000_000, 1], raw=[b""]),
    "an element longer than its tensor": request(raw=[struct.pack("<I", 2**32 - 1) + b"a"]),
    "an element shorter by one": request(raw=[struct.pack("<I", 8) + b"a red cat"]),
    "a length without its fourth byte": request(raw=[b"\1\0\0"]),
    "an unknown model": request(model_name="nothing", raw=[ELEMENT]),
    "an unknown version": request(model_version="999", raw=[ELEMENT]),
    "a version in words": request(model_version="latest", raw=[ELEMENT]),
}


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as opened:
        yield opened


@pytest.mark.parametrize("name", GRPC_REQUESTS)
def test_grpc_refuses_a_request_with(channel: grpc.Channel, name: str) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(GRPC_REQUESTS[name], timeout=HANG_S)
    refused = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}
    assert caught.value.code() in refused, caught.value
    assert not tells_of_our_insides(caught.value.details())


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a" * 50_000])
def test_grpc_refuses_bytes_that_are_no_message(channel: grpc.Channel, content: bytes) -> None:
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(content, timeout=HANG_S)
    assert caught.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
