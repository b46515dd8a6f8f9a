"""A small collector: takes OTLP over HTTP, tritonserver's JSON and the Python exporter's protobuf."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TIMEOUT_S = 5  # five times what Triton waits before it sends


@dataclasses.dataclass(frozen=True)
class Span:
    """Ids are in lower-case hex; the parent's is empty for a root."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str]
    is_error: bool


class Receiver:
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.url = ""

    def wait_for(self, is_enough: Callable[[list[Span]], bool]) -> list[Span]:
        """All spans, once there are enough; they come late and in any order. Raises TimeoutError."""
        deadline = time.monotonic() + TIMEOUT_S
        while not is_enough(list(self.spans)):
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.1)
        return list(self.spans)


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            is_json = self.headers["Content-Type"].startswith("application/json")
            receiver.spans.extend(_spans(json.loads(body) if is_json else _from_protobuf(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _from_protobuf(body: bytes) -> dict[str, object]:
    """As JSON, with ids in hex, as OTLP writes them and protobuf's own JSON does not."""
    request = ExportTraceServiceRequest.FromString(body)
    tree = json_format.MessageToDict(request)
    for resource, message in zip(tree["resourceSpans"], request.resource_spans, strict=True):
        for scope, scope_message in zip(resource["scopeSpans"], message.scope_spans, strict=True):
            for span, span_message in zip(scope["spans"], scope_message.spans, strict=True):
                span["traceId"] = span_message.trace_id.hex()
                span["spanId"] = span_message.span_id.hex()
                span["parentSpanId"] = span_message.parent_span_id.hex()
    return tree


def _spans(tree: dict[str, object]) -> Iterator[Span]:
    for resource in tree["resourceSpans"]:
        service = _attributes(resource["resource"])["service.name"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    service=service,
                    name=span["name"],
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", "").strip("0") and span["parentSpanId"],
                    attributes=_attributes(span),
                    is_error=span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR"),
                )


def _attributes(tree: dict[str, list[dict[str, object]]]) -> dict[str, str]:
    return {entry["key"]: str(next(iter(entry["value"].values()))) for entry in tree.get("attributes", [])}
