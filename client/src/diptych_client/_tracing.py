"""Makes OpenTelemetry spans for each call, if the program uses OpenTelemetry.

A call is a span, and each attempt is a span inside, whose id goes to the server in the W3C header
`traceparent`, so that the server's spans are its children. OpenTelemetry is not imported here. In a program
that has not imported it, a call costs one dictionary lookup. Spans contain nothing of an item and no error
message.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from diptych_client._answer import MODEL, Request
from diptych_client._errors import DiptychError
from diptych_client._servers import Address

T = TypeVar("T")
Arguments = TypeVar("Arguments")

Span = contextlib.AbstractContextManager[Any]

_NOTHING: Span = contextlib.nullcontext()


def call(name: str) -> Span:
    """Around a whole call, including retries and the request for labels."""
    trace = _opentelemetry()
    return _NOTHING if trace is None else _span(trace, f"diptych {name}", "INTERNAL", {})


def attempt(address: Address, request: Request) -> Span:
    """Around one request to one server; inside it, `headers` returns this span's id."""
    trace = _opentelemetry()
    if trace is None:
        return _NOTHING
    attributes = {
        "server.address": address.endpoint.host,
        "server.port": address.endpoint.port,
        "network.protocol.name": address.scheme,
        "diptych.request_id": request.request_id,
    }
    return _span(trace, f"infer {MODEL}", "CLIENT", attributes)


def headers() -> tuple[tuple[str, str], ...]:
    """Headers with the current span, as written by the program's propagators."""
    if _opentelemetry() is None:
        return ()
    from opentelemetry import propagate  # type: ignore[import-not-found,unused-ignore]

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


def carried(function: Callable[[Arguments], T]) -> Callable[[Arguments], T]:
    """The function with this thread's context variables, to be called in other threads: the caller's
    functions
    may read them, and spans become children of this one's."""
    context = contextvars.copy_context()
    return lambda argument: context.copy().run(function, argument)


def _opentelemetry() -> Any | None:
    return sys.modules.get("opentelemetry.trace")


@contextlib.contextmanager
def _span(trace: Any, name: str, kind: str, attributes: dict[str, object]) -> Iterator[None]:
    tracer = trace.get_tracer("diptych_client")
    with tracer.start_as_current_span(
        name,
        kind=trace.SpanKind[kind],
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except DiptychError as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(trace.StatusCode.ERROR)
            raise
