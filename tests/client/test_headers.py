"""Headers: of the client and of one call, at once or later, and none that a wire would refuse."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import types

import pytest

from diptych_client import AsyncClient, Client, DeadlineExceeded, InvalidInput, ServerFault
from tests.client.fake_triton import Failure, FakeTriton

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("TENANT")


@pytest.mark.parametrize("name", ["a!b", "x#key", "a~b", "a|b", "naïve", ""])
def test_a_name_that_grpc_would_refuse_is_refused_at_construction(name: str):
    with pytest.raises(InvalidInput, match=r"^headers: found the name .*; accepted: letters, digits"):
        Client("http://127.0.0.1", headers={name: "value"})


def test_capital_letters_are_sent_as_grpc_wants_them(triton: FakeTriton, wire: str, classify_texts):
    classify_texts(triton.urls[wire], ["words"], headers={"X-Amzn-Trace-Id": "Root=1"})
    assert triton.received[0].headers["x-amzn-trace-id"] == "Root=1"


def test_what_propagators_write_fails_no_call(
    triton: FakeTriton, wire: str, classify_texts, monkeypatch: pytest.MonkeyPatch
):
    """AWS X-Ray's has capital letters; another could write what gRPC does not take."""

    def inject(carrier: dict[str, str]) -> None:
        carrier.update({"X-Amzn-Trace-Id": "Root=1", "bad name": "x", "x-bad-value": "a\nb", "Te": "x"})

    package, trace, propagate = map(types.ModuleType, ("opentelemetry", "trace", "propagate"))
    propagate.inject = inject  # type: ignore[attr-defined]
    package.propagate = propagate  # type: ignore[attr-defined]
    trace.get_tracer = lambda name: types.SimpleNamespace(  # type: ignore[attr-defined]
        start_as_current_span=lambda *_, **__: __import__("contextlib").nullcontext()
    )
    trace.SpanKind = {"INTERNAL": 0, "CLIENT": 1}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "opentelemetry", package)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", trace)
    monkeypatch.setitem(sys.modules, "opentelemetry.propagate", propagate)
    classify_texts(triton.urls[wire], ["words"])
    sent = triton.received[0].headers
    assert sent["x-amzn-trace-id"] == "Root=1"
    assert not {"bad name", "x-bad-value", "te"} & {name for name, value in sent.items() if value == "x"}


def test_headers_of_one_call_go_before_the_clients(triton: FakeTriton, wire: str, classify_each):
    items = [{"text": "a", "headers": {"X-Tenant": "shop"}}, {"text": "b"}]
    classify_each(triton.urls[wire], items, headers={"x-tenant": "all", "x-team": "search"})
    of_items = [received.headers for received in triton.received if not received.num_classes]
    assert [headers["x-tenant"] for headers in of_items] == ["shop", "all"]
    assert {headers["x-team"] for headers in of_items} == {"search"}


def test_a_request_id_of_the_callers_own(triton: FakeTriton, wire: str, classify_each):
    items = [{"image": b"picture", "text": "words", "request_id": "order-17", "explain": True}]
    (answer,) = classify_each(triton.urls[wire], items)
    assert answer.request_id == "order-17"
    ids = {received.request_id for received in triton.received if not received.num_classes}
    assert ids == {"order-17", "order-17-image", "order-17-text"}


@pytest.mark.parametrize("request_id", ["", "a b", "a\nb", "é", "x" * 129, 17])
def test_a_request_id_that_cannot_be_sent_is_refused(triton: FakeTriton, classify_each, request_id: object):
    with pytest.raises(InvalidInput, match=r"^request_id: found .*; accepted: 1 to 128 ASCII"):
        classify_each(triton.urls["http"], [{"text": "words", "request_id": request_id}])


def test_a_function_that_returns_none_is_named(triton: FakeTriton, wire: str, classify_texts):
    with pytest.raises(
        InvalidInput, match="headers: found a function that returns NoneType; accepted: a map"
    ):
        classify_texts(triton.urls[wire], ["words"], headers=lambda: None)


def test_an_asynchronous_function_is_awaited(triton: FakeTriton, wire: str):
    async def renew() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"authorization": "Bearer the-token"}

    async def ask() -> None:
        async with AsyncClient(triton.urls[wire], headers=renew) as client:
            await client.classify(text="words")

    asyncio.run(ask())
    assert {received.headers["authorization"] for received in triton.received} == {"Bearer the-token"}
    with pytest.raises(InvalidInput, match="headers: found an asynchronous function"):
        Client(triton.urls[wire], headers=renew)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_function_that_hangs_is_cut_off_and_never_holds_the_loop(triton: FakeTriton, is_async: bool):
    gate, threads = threading.Event(), []

    def hang() -> dict[str, str]:
        threads.append(threading.current_thread())
        gate.wait(20)
        return {}

    async def hang_asynchronously() -> dict[str, str]:
        await asyncio.sleep(20)
        return {}

    async def ask() -> None:
        headers = hang_asynchronously if is_async else hang
        async with AsyncClient(triton.urls["http"], headers=headers) as client:
            with pytest.raises(DeadlineExceeded):
                await client.classify(text="words", timeout_s=0.2)

    asyncio.run(ask())
    gate.set()
    assert threading.main_thread() not in threads


def test_a_token_that_has_been_renewed_is_struck_out_too(triton: FakeTriton, wire: str, classify_texts):
    tokens = iter(f"secret-token-{number}" for number in range(9))
    triton.failures = [None, None, Failure("INTERNAL", 500, "no: secret-token-0, secret-token-2")]
    with pytest.raises(ServerFault, match=r"no: \*\*\*, \*\*\*") as caught:
        classify_texts(triton.urls[wire], ["a", "b"], headers=lambda: {"authorization": next(tokens)})
    assert "secret" not in repr(caught.value.args)


def test_context_variables_reach_the_functions_of_the_caller(triton: FakeTriton, wire: str):
    """In the threads of classify_many and explain as in classify; OpenTelemetry or not."""

    def of_the_tenant() -> dict[str, str]:
        return {"x-tenant": TENANT.get()}

    def fetch(url: str) -> bytes:
        return TENANT.get().encode()

    TENANT.set("shop")
    item = {"image": "https://host/picture", "text": "words"}
    with Client(triton.urls[wire], headers=of_the_tenant, fetch=fetch) as client:
        client.classify(**item, explain=True)
        (outcome,) = client.classify_many([item])
        assert outcome.error is None

    async def ask() -> None:
        async with AsyncClient(triton.urls[wire], headers=of_the_tenant, fetch=fetch) as client:
            await client.classify(**item, explain=True)
            assert [outcome.error async for outcome in client.classify_many([item])] == [None]

    asyncio.run(ask())
    assert {received.headers["x-tenant"] for received in triton.received} == {"shop"}
    assert {received.inputs["image"][2][4:] for received in triton.received} == {b"shop", b""}
