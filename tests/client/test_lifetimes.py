"""Clients that outlive a connection, an event loop, a process, or the interpreter's last moments."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from diptych_client import Answer, AsyncClient, Client, DeadlineExceeded, DiptychError, Retries
from tests.client.fake_triton import FakeTriton
from tests.client.silent_proxy import SilentProxy


@pytest.fixture
def proxy(triton: FakeTriton, wire: str) -> Iterator[SilentProxy]:
    with SilentProxy(int(triton.urls[wire].rpartition(":")[2])).running() as proxy:
        yield proxy


def test_a_connection_that_was_dropped_silently_is_replaced(proxy: SilentProxy, wire: str):
    with Client(f"{wire}://127.0.0.1:{proxy.port}", timeout_s=10) as client:
        assert client.classify(text="words").label == "clothing"
        proxy.forget_connections()
        outcomes = []
        for _ in range(4):
            try:
                outcomes.append(client.classify(text="words", timeout_s=1).label)
            except DeadlineExceeded:
                outcomes.append("late")
        assert outcomes == {"grpc": ["late"] * 3, "http": ["late"]}[wire] + ["clothing"] * (
            1 if wire == "grpc" else 3
        )


def test_a_connection_that_was_dropped_silently_is_replaced_asynchronously(proxy: SilentProxy, wire: str):
    async def ask() -> list[str | None]:
        async with AsyncClient(f"{wire}://127.0.0.1:{proxy.port}", timeout_s=10) as client:
            assert (await client.classify(text="words")).label == "clothing"
            proxy.forget_connections()
            outcomes = []
            for _ in range(4):
                try:
                    outcomes.append((await client.classify(text="words", timeout_s=1)).label)
                except DeadlineExceeded:
                    outcomes.append("late")
            return outcomes

    assert asyncio.run(ask())[-1] == "clothing"


def test_a_slow_server_keeps_the_calls_that_are_under_way(triton: FakeTriton):
    """The channel is replaced under a call that has time left."""
    with Client(triton.urls["grpc"]) as client:
        client.classify(text="words")
        triton.hold.clear()
        answers: list[Answer] = []
        patient = threading.Thread(target=lambda: answers.append(client.classify(text="words", timeout_s=4)))
        patient.start()
        time.sleep(0.1)
        for _ in range(4):
            with pytest.raises(DeadlineExceeded):
                client.classify(text="words", timeout_s=0.1)
        triton.hold.set()
        patient.join()
    assert [answer.label for answer in answers] == ["clothing"]
    assert triton.cancelled == []


def test_an_async_client_works_in_one_event_loop_after_the_other(triton: FakeTriton, wire: str):
    client = AsyncClient(triton.urls[wire])

    async def ask() -> str | None:
        return (await client.classify(text="words")).label

    assert [asyncio.run(ask()) for _ in range(3)] == ["clothing"] * 3
    asyncio.run(client.close())


def classify_once(client: Client) -> str | None:
    with client:
        return client.classify(text="words").label


def test_a_client_goes_through_pickle_and_into_spawned_processes(triton: FakeTriton, wire: str):
    client = Client(
        triton.urls[wire], timeout_s=20, headers={"x-team": "shop"}, retries=Retries(max_attempts=2)
    )
    with client:
        assert client.classify(text="words").label == "clothing"
        for twin in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client)):  # noqa: S301
            assert repr(twin) == repr(client)
            assert classify_once(twin) == "clothing"
            assert triton.received[-1].headers["x-team"] == "shop"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.map(classify_once, [client]) == ["clothing"]
    again = pickle.loads(pickle.dumps(AsyncClient(triton.urls[wire])))  # noqa: S301
    assert isinstance(again, AsyncClient)


@pytest.mark.parametrize("timeout_s", [5, 600])
def test_a_call_at_the_interpreters_end_comes_back(triton: FakeTriton, wire: str, timeout_s: int):
    program = f"""
from diptych_client import Client

class Last:
    def __init__(self):
        self.client = Client({triton.urls[wire]!r}, timeout_s={timeout_s})
        self.client.classify(text="words")
    def __del__(self):
        try:
            self.client.classify(text="words")
        except Exception:
            pass

last = Last()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_program_that_does_not_close_its_client_ends(triton: FakeTriton, wire: str):
    program = f"""
from diptych_client import Client
client = Client({triton.urls[wire]!r}, timeout_s=2)
client.classify(text="words")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_task_that_is_cancelled_while_its_client_closes_stays_cancelled(triton: FakeTriton, wire: str):
    async def ask() -> None:
        client = AsyncClient(triton.urls[wire])
        await client.classify(text="words")
        triton.hold.clear()
        call = asyncio.create_task(client.classify(text="words"))
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        triton.hold.set()
        await closing

    asyncio.run(ask())


def test_closing_under_a_call_is_an_error_of_ours(triton: FakeTriton, wire: str):
    with Client(triton.urls[wire], timeout_s=1) as client:
        client.classify(text="words")
        triton.hold.clear()
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                client.classify(text="words")
            except BaseException as error:
                failures.append(error)

        caller = threading.Thread(target=ask)
        caller.start()
        time.sleep(0.1)
        client.close()
        caller.join()
        triton.hold.set()
    assert [isinstance(error, (DiptychError, RuntimeError)) for error in failures] == [True]


def test_a_client_that_found_no_server_is_closed_without_a_traceback() -> None:
    """gRPC watches a channel for a moment longer than it is asked to, and printed one if that was closed."""
    code = """
import time
from diptych_client import Client, DiptychError
for _ in range(8):
    with Client("grpc://127.0.0.1:9", timeout_s=0.1) as client:
        try:
            client.classify(text="words")
        except DiptychError:
            pass
time.sleep(0.4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
