"""A Triton front end without a Triton behind: gRPC and HTTP, canned answers, every request kept.

No tests in here: only the wire that the client's tests talk to. It reads and writes the protocols by itself,
and shares no code with the client.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

UNLIMITED = (("grpc.max_receive_message_length", -1),)


@dataclasses.dataclass(frozen=True)
class Received:
    """One request as it came: each input as (datatype, shape, bytes); header names in lower case."""

    model: str
    request_id: str
    inputs: dict[str, tuple[str, tuple[int, ...], bytes]]
    outputs: tuple[str, ...]
    num_classes: int
    timeout_us: int
    headers: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Failure:
    """The same failure in both protocols."""

    grpc_code: str
    http_status: int
    message: str
    retry_after: str | None = None


class FakeTriton:
    """Answers every request with `scores`, after `hold` is set.

    failure       what every request is answered with instead, where there is one
    failures      what the next requests are answered with instead, one each; None: an answer
    num_failures  how many were
    wrong_ids     the ids that the next answers carry in place of their requests'; None: the right one
    echoes        whether an item's text says which label it gets, by number
    cancelled     the ids of the requests that were no longer wanted when their answer was ready; gRPC only
    """

    def __init__(self) -> None:
        self.repeats_after_s: float | None = None  # HTTP answers are sent twice, as a broken proxy does
        self.is_stopping = False
        self.hangs_up = False  # whether HTTP connections are closed after each answer, without a word
        self.labels = ["electronics", "clothing", "books", "home: garden"]
        self.scores = [0.03125, 0.9, 2e-7, 0.0687498]
        self.model_version = "1"
        self.failure: Failure | None = None
        self.failures: list[Failure | None] = []
        self.num_failures = 0
        self.wrong_ids: list[str | None] = []
        self.echoes = False
        self.hold = threading.Event()
        self.hold.set()
        self.received: list[Received] = []
        self.cancelled: list[str] = []
        self.num_http_connections = 0
        self.num_open_http_connections = 0
        self.prefixes: set[str] = set()
        self.urls: dict[str, str] = {}

    def id_of_answer(self, request_id: str) -> str:
        return (self.wrong_ids.pop(0) if self.wrong_ids else None) or request_id

    def next_failure(self) -> Failure | None:
        failure = self.failures.pop(0) if self.failures else self.failure
        self.num_failures += failure is not None
        return failure

    @property
    def labels_identity(self) -> str:
        """As the real server has it: of the bytes of labels.txt."""
        return hashlib.sha256("".join(f"{label}\n" for label in self.labels).encode()).hexdigest()[:16]

    def answer(self, request: Received) -> tuple[str, int, bytes]:
        """Datatype, number of elements, bytes."""
        self.hold.wait()
        self.received.append(request)
        if not request.num_classes:
            scores = self.scores
            if self.echoes:
                chosen = int(request.inputs["text"][2][4:] or b"0") % len(self.labels)
                scores = [float(index == chosen) for index in range(len(self.labels))]
            return "FP32", len(scores), struct.pack(f"<{len(scores)}f", *scores)
        ranked = sorted(enumerate(self.scores), key=lambda pair: -pair[1])[: request.num_classes]
        names = [":" + label for label in self.labels] or [""] * len(self.scores)
        elements = [f"{score:f}:{index}{names[index]}".encode() for index, score in ranked]
        return "BYTES", len(elements), b"".join(struct.pack("<I", len(e)) + e for e in elements)

    @contextlib.contextmanager
    def running(self, grpc_port: int = 0, http_port: int = 0) -> Iterator[FakeTriton]:
        rpc = grpc.server(ThreadPoolExecutor(16), options=UNLIMITED)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(self), rpc)
        self.urls["grpc"] = f"grpc://127.0.0.1:{rpc.add_insecure_port(f'127.0.0.1:{grpc_port}')}"
        rpc.start()
        http = _HttpServer(("127.0.0.1", http_port), _Handler)
        http.triton = self
        self.urls["http"] = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.is_stopping = True
            self.hold.set()
            http.shutdown()
            thread.join()
            http.server_close()
            rpc.stop(grace=None).wait()


def element(text: str) -> bytes:
    """One element of a BYTES tensor."""
    return struct.pack("<I", len(text)) + text.encode()


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, triton: FakeTriton) -> None:
        self.triton = triton

    def ModelInfer(self, request, context):
        if failure := self.triton.next_failure():
            if failure.retry_after:
                context.set_trailing_metadata([("retry-after", failure.retry_after)])
            context.abort(grpc.StatusCode[failure.grpc_code], failure.message)
        inputs = {
            tensor.name: (tensor.datatype, tuple(tensor.shape), content)
            for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        outputs = tuple(output.name for output in request.outputs)
        num_classes = request.outputs[0].parameters["classification"].int64_param
        timeout_us = request.parameters["timeout"].int64_param
        headers = dict(context.invocation_metadata())
        received = Received(request.model_name, request.id, inputs, outputs, num_classes, timeout_us, headers)
        datatype, num_elements, data = self.triton.answer(received)
        if not context.is_active():
            self.triton.cancelled.append(request.id)
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name,
            model_version=self.triton.model_version,
            id=self.triton.id_of_answer(request.id),
        )
        # Triton answers in the alphabet's order, whatever the order of the request.
        response.outputs.add(name="labels_sha256", datatype="BYTES", shape=[1, 1])
        response.raw_output_contents.append(element(self.triton.labels_identity))
        response.outputs.add(name="probabilities", datatype=datatype, shape=[1, num_elements])
        response.raw_output_contents.append(data)
        return response


class _HttpServer(ThreadingHTTPServer):
    triton: FakeTriton
    request_queue_size = 512  # connections that wait to be accepted

    def handle_error(self, request, client_address):
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm = True
    server: _HttpServer

    def setup(self):
        super().setup()
        self.server.triton.num_http_connections += 1
        self.server.triton.num_open_http_connections += 1

    def finish(self):
        self.server.triton.num_open_http_connections -= 1
        super().finish()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.triton.is_stopping:
            self.close_connection = True  # and hang up
            return None
        if failure := self.server.triton.next_failure():
            headers = {"Retry-After": failure.retry_after} if failure.retry_after else {}
            return self.reply(failure.http_status, json.dumps({"error": failure.message}).encode(), headers)
        header_length = int(self.headers["Inference-Header-Content-Length"])
        header, rest = json.loads(body[:header_length]), body[header_length:]
        inputs = {}
        for tensor in header["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            inputs[tensor["name"]] = (tensor["datatype"], tuple(tensor["shape"]), rest[:size])
            rest = rest[size:]
        assert not rest
        outputs = tuple(output["name"] for output in header["outputs"])
        num_classes = header["outputs"][0]["parameters"].get("classification", 0)
        prefix, _, target = self.path.partition("/v2/models/")
        self.server.triton.prefixes.add(prefix)
        model = target.split("/")[0]
        timeout_us = header["parameters"]["timeout"]
        headers = {name.lower(): value for name, value in self.headers.items()}
        received = Received(model, header["id"], inputs, outputs, num_classes, timeout_us, headers)
        datatype, num_elements, data = self.server.triton.answer(received)
        identity = element(self.server.triton.labels_identity)
        tensors = [
            {
                "name": "labels_sha256",
                "datatype": "BYTES",
                "shape": [1, 1],
                "parameters": {"binary_data_size": len(identity)},
            },
            {
                "name": "probabilities",
                "datatype": datatype,
                "shape": [1, num_elements],
                "parameters": {"binary_data_size": len(data)},
            },
        ]
        answer = {
            "id": self.server.triton.id_of_answer(header["id"]),
            "model_name": model,
            "model_version": self.server.triton.model_version,
        }
        head = json.dumps({**answer, "outputs": tensors}).encode()
        return self.reply(200, head + identity + data, {"Inference-Header-Content-Length": str(len(head))})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        again_after_s = self.server.triton.repeats_after_s
        again = b""
        if again_after_s is not None:
            head = f"HTTP/1.1 {status} again\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            again = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        if again_after_s:
            self.wfile.write(body)
            time.sleep(again_after_s)
            self.wfile.write(again)
        else:
            self.wfile.write(body + again)
        self.close_connection = self.server.triton.hangs_up

    def log_message(self, format, *args):
        """Quiet."""
