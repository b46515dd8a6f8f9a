"""The async twin: the same methods as the blocking client, and an event loop that is never held up."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from diptych_client import AsyncClient, Client, ConnectionFailed, DeadlineExceeded, InvalidInput, ServerFault
from tests.client.fake_triton import Failure, FakeTriton

WIRES = ("grpc", "http")


def public_methods(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_the_twins_have_the_same_methods_with_the_same_arguments():
    assert public_methods(AsyncClient) == public_methods(Client)
    assert inspect.signature(AsyncClient) == inspect.signature(Client)


@pytest.mark.parametrize("wire", WIRES)
def test_many_calls_wait_at_the_same_time_and_the_loop_goes_on(triton: FakeTriton, wire: str):
    async def ask() -> None:
        async with AsyncClient(triton.urls[wire]) as client:
            await client.labels()
            triton.hold.clear()
            calls = [asyncio.create_task(client.classify(text=f"item {number}")) for number in range(8)]
            await asyncio.sleep(0.1)
            assert not any(call.done() for call in calls)
            triton.hold.set()
            answers = await asyncio.gather(*calls)
            assert len({answer.request_id for answer in answers}) == 8
            assert {answer.label for answer in answers} == {"clothing"}

    asyncio.run(ask())


@pytest.mark.parametrize("wire", WIRES)
def test_a_call_ends_at_its_deadline(triton: FakeTriton, wire: str):
    async def ask() -> None:
        async with AsyncClient(triton.urls[wire]) as client:
            triton.hold.clear()
            with pytest.raises(DeadlineExceeded, match=r"^no answer within 0\.3 s"):
                await client.classify(text="words", timeout_s=0.3)
            triton.hold.set()
            assert (await client.classify(text="words")).label == "clothing"

    asyncio.run(ask())


@pytest.mark.parametrize("wire", WIRES)
def test_a_cancelled_call_is_cancelled_and_the_next_one_is_answered(triton: FakeTriton, wire: str):
    async def ask() -> None:
        async with AsyncClient(triton.urls[wire]) as client:
            triton.hold.clear()
            call = asyncio.create_task(client.classify(text="words"))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            triton.scores = [0.7, 0.1, 0.1, 0.1]
            triton.hold.set()
            assert (await client.classify(text="words")).label == "electronics"

    asyncio.run(ask())


def test_over_grpc_neither_a_deadline_nor_a_cancelled_task_cancels_in_the_server(triton: FakeTriton):
    """In tritonserver 2.51.0 that races with the answer, and ends it."""

    async def ask() -> None:
        async with AsyncClient(triton.urls["grpc"]) as client:
            triton.hold.clear()
            call = asyncio.create_task(client.classify(text="unwanted"))
            with pytest.raises(DeadlineExceeded):
                await client.classify(text="late", timeout_s=0.1)
            call.cancel()
            await asyncio.sleep(0.1)  # for a cancellation to arrive
            triton.hold.set()
            assert (await client.classify(text="next")).label == "clothing"

    asyncio.run(ask())
    assert triton.cancelled == []


@pytest.mark.parametrize("wire", WIRES)
def test_a_closed_client_says_so_and_its_calls_in_flight_end(triton: FakeTriton, wire: str):
    async def ask() -> None:
        client = AsyncClient(triton.urls[wire], timeout_s=0.5)
        triton.hold.clear()
        call = asyncio.create_task(client.classify(text="words"))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises((ConnectionFailed, DeadlineExceeded)):
            await call
        with pytest.raises(RuntimeError, match=r"^AsyncClient\('(grpc|http)://.* is closed$"):
            await client.classify(text="words")

    asyncio.run(ask())


@pytest.mark.parametrize("wire", WIRES)
def test_idle_connections_that_the_server_closed_are_replaced_silently(triton: FakeTriton, wire: str):
    triton.hangs_up = True

    async def ask() -> None:
        async with AsyncClient(triton.urls[wire]) as client:
            for _ in range(3):
                assert (await client.classify(text="words")).label == "clothing"

    asyncio.run(ask())


def test_a_failure_has_the_same_type_as_in_the_blocking_client(triton: FakeTriton):
    triton.failure = Failure("INVALID_ARGUMENT", 400, "preprocess: image: found a text; accepted: a PNG")

    async def ask(wire: str) -> None:
        async with AsyncClient(triton.urls[wire]) as client:
            with pytest.raises(InvalidInput, match=r"^preprocess: image: found a text") as caught:
                await client.classify(b"a text")
            assert caught.value.field == "image"

    for wire in WIRES:
        asyncio.run(ask(wire))


@pytest.mark.parametrize("wire", WIRES)
def test_an_explanation_whose_questions_fail_raises_their_error(triton: FakeTriton, wire: str):
    triton.failure = Failure("INTERNAL", 500, "stub process died")

    async def ask() -> None:
        async with AsyncClient(triton.urls[wire]) as client:
            with pytest.raises(ServerFault, match=r"^stub process died"):
                await client.classify(b"picture", "words", explain=True)
        assert triton.num_failures == 3

    asyncio.run(ask())
