"""One total deadline: names, connections, places in the pool, images and headers count too."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from diptych_client import AsyncClient, Client, ConnectionFailed, DeadlineExceeded
from diptych_client._servers import Balancer
from diptych_client._transports._pool import MAX_CONNECTIONS
from tests.client.fake_triton import FakeTriton, Received

PATIENCE_S = 20.0


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs until the test ends."""
    event = threading.Event()
    yield event
    event.set()


def test_a_slow_fetch_is_cut_off(triton: FakeTriton, classify_images, gate: threading.Event):
    has_fetched = threading.Event()

    def fetch(url: str) -> bytes:
        gate.wait(PATIENCE_S)
        has_fetched.set()
        return b"picture"

    with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
        classify_images(triton.urls["http"], ["https://host/picture.jpg"], timeout_s=0.3, fetch=fetch)
    assert not has_fetched.is_set()
    assert triton.received == []


def test_an_event_loop_whose_threads_are_busy_does_not_delay_files(triton: FakeTriton, tmp_path, gate):
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"picture")

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, gate.wait, PATIENCE_S)
        async with AsyncClient(triton.urls["http"], timeout_s=PATIENCE_S / 2) as client:
            assert (await client.classify(path)).label == "clothing"
        gate.set()
        await busy

    asyncio.run(ask())


class Names:
    """getaddrinfo with names of its own. It hangs while `gate` is not set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.num_lookups = 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host, port, *arguments, **options):
        if host != "triton.test":
            return self._real(host, port, *arguments, **options)
        self.num_lookups += 1
        self.gate.wait(PATIENCE_S)
        return self._real("127.0.0.1", port, *arguments, **options)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names(monkeypatch)
    yield names
    names.gate.set()


def url_of(triton: FakeTriton, wire: str) -> str:
    return triton.urls[wire].replace("127.0.0.1", "triton.test")


def test_calls_that_wait_for_a_name_share_one_look_up(triton: FakeTriton, wire: str, names: Names):
    names.gate.clear()
    with Client(url_of(triton, wire), timeout_s=0.1) as client:
        for _ in range(20):
            with pytest.raises(DeadlineExceeded):
                client.classify(text="words")
        assert names.num_lookups == 1
        assert sum(thread.name == "diptych-resolver" for thread in threading.enumerate()) == 1
        names.gate.set()
        assert client.classify(text="words", timeout_s=PATIENCE_S).label == "clothing"


def test_known_addresses_are_used_while_a_look_up_hangs(triton: FakeTriton, wire: str, names: Names):
    """Blocking and asynchronous."""

    def age(balancer: Balancer) -> None:
        balancer._stale_at_s = dict.fromkeys(balancer._stale_at_s, float("-inf"))

    with Client(url_of(triton, wire), timeout_s=PATIENCE_S / 4) as client:
        client.classify(text="words")
        names.gate.clear()
        age(client._balancer)
        for _ in range(3):
            assert client.classify(text="words").label == "clothing"
        assert names.num_lookups == 2
        names.gate.set()

    async def ask() -> None:
        async with AsyncClient(url_of(triton, wire), timeout_s=PATIENCE_S / 4) as client:
            await client.classify(text="words")
            names.gate.clear()
            age(client._balancer)
            for _ in range(3):
                assert (await client.classify(text="words")).label == "clothing"
            names.gate.set()

    asyncio.run(ask())


def test_a_name_that_nobody_knows_is_a_failed_connection(wire: str, classify_texts):
    with pytest.raises(ConnectionFailed, match=r"nobody\.invalid:8001"):
        classify_texts(f"{wire}://nobody.invalid:8001", ["words"], timeout_s=PATIENCE_S)
    with pytest.raises(ConnectionFailed, match="label"):
        classify_texts(f"{wire}://{'a' * 70}.test:8001", ["words"], timeout_s=PATIENCE_S)


@pytest.fixture
def silent_url(wire: str) -> Iterator[str]:
    """An address that answers no connection attempt, as a host that is gone: its queue is full."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            filling = opened.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield f"{wire}://127.0.0.1:{listener.getsockname()[1]}"


def test_connecting_leaves_time_for_another_server(
    triton: FakeTriton, wire: str, silent_url: str, classify_texts
):
    """With two seconds in all, one server that drops attempts to connect would otherwise take them all."""
    urls = [silent_url, triton.urls[wire]]
    answers = classify_texts(urls, ["1", "2", "3"], timeout_s=2)
    assert {answer.label for answer in answers} == {"clothing"}
    assert 2 in {answer.timings.num_attempts for answer in answers}


def test_calls_that_end_while_another_asks_for_the_labels_name_their_own_request(
    gate: threading.Event, wire: str
):
    class SlowLabels(FakeTriton):
        def answer(self, request: Received) -> tuple[str, int, bytes]:
            if request.num_classes:
                gate.wait(PATIENCE_S)
            return super().answer(request)

    with SlowLabels().running() as slow, Client(slow.urls[wire], timeout_s=0.5) as client:

        def ask(number: int) -> str | None:
            with pytest.raises(DeadlineExceeded) as caught:
                client.classify(text=str(number))
            return caught.value.request_id

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            ids = list(threads.map(ask, range(4)))
        gate.set()
    assert len({request_id for request_id in ids if request_id}) == 4


def test_more_calls_than_connections_wait_for_their_turn(triton: FakeTriton):
    num_calls = 3 * MAX_CONNECTIONS

    async def ask() -> None:
        async with AsyncClient(triton.urls["http"], timeout_s=PATIENCE_S) as client:
            answers = await asyncio.gather(*(client.classify(text=str(n)) for n in range(num_calls)))
            assert {answer.label for answer in answers} == {"clothing"}

    asyncio.run(ask())
    assert triton.num_http_connections <= MAX_CONNECTIONS


def test_threads_beyond_the_limit_wait_for_their_turn(triton: FakeTriton, limited: Callable[[Client], None]):
    with Client(triton.urls["http"], timeout_s=PATIENCE_S) as client:
        client.labels()
        limited(client)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda n: client.classify(text=str(n)), range(40)))
    assert {answer.label for answer in answers} == {"clothing"}
    assert triton.num_http_connections <= 2


def test_waiting_for_a_turn_ends_at_the_deadline(triton: FakeTriton, limited: Callable[[Client], None]):
    with Client(triton.urls["http"], timeout_s=PATIENCE_S) as client:
        client.classify(text="words")
        limited(client)
        triton.hold.clear()
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            holding = [threads.submit(client.classify, text="words") for _ in range(2)]
            time.sleep(0.2)
            with pytest.raises(DeadlineExceeded):
                client.classify(text="words", timeout_s=0.2)
            triton.hold.set()
            assert {call.result().label for call in holding} == {"clothing"}
        assert client.classify(text="words").label == "clothing"


@pytest.fixture
def limited() -> Callable[[Client], None]:
    """Leaves a client two connections."""

    def limit(client: Client) -> None:
        for transport in client._transports.values():
            transport._pool._num_free = 2  # type: ignore[attr-defined]

    return limit


def test_connections_that_idle_are_closed_without_another_call(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("diptych_client._transports._http_wire.KEEP_IDLE_S", 0.1)

    def wait_until_closed() -> None:
        ends_s = time.monotonic() + PATIENCE_S
        while triton.num_open_http_connections:
            assert time.monotonic() < ends_s
            time.sleep(0.01)

    with Client(triton.urls["http"]) as client:
        client.classify(text="words")
        wait_until_closed()
        assert client.classify(text="words").label == "clothing"

    async def ask() -> None:
        async with AsyncClient(triton.urls["http"]) as client:
            await client.classify(text="words")
            await asyncio.to_thread(wait_until_closed)
            assert (await client.classify(text="words")).label == "clothing"

    asyncio.run(ask())
