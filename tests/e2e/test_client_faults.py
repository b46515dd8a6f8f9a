"""Whatever the wire does, every call ends in an answer or a typed error within its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hostile_proxy import Fault, HostileProxy
from tiny_repository import build_tiny_repository

from diptych.serving import Server
from diptych_client import (
    Answer,
    AsyncClient,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    Retries,
)

TIMEOUT_S = 1.5
# What a loaded machine may take to notice.
GRACE_S = 2.0

WIRES = ("grpc", "http")
Outcome = Answer | DiptychError
Classify = Callable[[], Outcome]


def port_of(server: Server, wire: str) -> int:
    return int(getattr(server.ports, wire))


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(server: Server, wire: str) -> Iterator[HostileProxy]:
    with HostileProxy((server.contact, port_of(server, wire))) as proxy:
        yield proxy


@pytest.fixture(params=["blocking", "async"])
def classify(request: pytest.FixtureRequest, proxy: HostileProxy, wire: str) -> Iterator[Classify]:
    """One call through the proxy. The first has gone through already, so that a connection is open."""
    url = f"{wire}://127.0.0.1:{proxy.port}"
    if request.param == "blocking":
        with Client(url, timeout_s=TIMEOUT_S) as client:
            client.wait_until_ready(timeout_s=30)
            client.labels(timeout_s=30)
            yield lambda: outcome_of(client)
        return
    with asyncio.Runner() as runner:
        client = runner.run(opened(url))
        yield lambda: runner.run(outcome_of_async(client))
        runner.run(client.close())


async def opened(url: str) -> AsyncClient:
    client = AsyncClient(url, timeout_s=TIMEOUT_S)
    await client.wait_until_ready(timeout_s=30)
    await client.labels(timeout_s=30)
    return client


def outcome_of(client: Client) -> Outcome:
    with within_deadline():
        try:
            return client.classify(text="a leaf")
        except DiptychError as error:
            return error


async def outcome_of_async(client: AsyncClient) -> Outcome:
    with within_deadline():
        try:
            return await client.classify(text="a leaf")
        except DiptychError as error:
            return error


@contextlib.contextmanager
def within_deadline() -> Iterator[None]:
    started_s = time.monotonic()
    yield
    assert time.monotonic() - started_s < TIMEOUT_S + GRACE_S


CUTS = [Fault.RESET_IN_MID_ANSWER, Fault.HALF_CLOSED_IN_MID_ANSWER]


@pytest.mark.parametrize("fault", CUTS)
def test_an_answer_cut_once_is_asked_for_again(classify: Classify, proxy: HostileProxy, fault: Fault) -> None:
    proxy.faults_left = 1
    proxy.fault = fault
    assert isinstance(classify(), Answer)
    assert proxy.num_faults == 1


@pytest.mark.parametrize("fault", CUTS)
def test_answers_that_are_always_cut_are_a_failed_connection(
    classify: Classify, proxy: HostileProxy, fault: Fault
) -> None:
    proxy.fault = fault
    assert isinstance(classify(), (ConnectionFailed, DeadlineExceeded))
    assert proxy.num_faults > 1
    proxy.fault = Fault.NONE
    assert answers_again(classify)


def test_a_black_hole_ends_at_the_deadline_and_is_forgotten_when_it_opens(
    classify: Classify, proxy: HostileProxy
) -> None:
    proxy.fault = Fault.BLACK_HOLE
    assert isinstance(classify(), DeadlineExceeded)
    proxy.fault = Fault.NONE
    proxy.drop_connections()  # half a request lies in the hole
    assert answers_again(classify)


def test_a_stall_beyond_the_deadline_ends_at_it(classify: Classify, proxy: HostileProxy) -> None:
    proxy.fault = Fault.STALL
    assert isinstance(classify(), DeadlineExceeded)


def test_a_stall_within_the_deadline_is_waited_for(server: Server, wire: str, proxy: HostileProxy) -> None:
    with Client(f"{wire}://127.0.0.1:{proxy.port}", timeout_s=30) as client:
        client.classify(text="a leaf")
        proxy.fault = Fault.STALL
        assert client.classify(text="a leaf").timings.waiting_ms >= 1900


def answers_again(classify: Classify) -> bool:
    """Within a few calls: a connection may need a moment to come back."""
    return any(isinstance(classify(), Answer) for _ in range(5))


def test_a_host_that_takes_no_connection_is_left_after_two_seconds(server: Server) -> None:
    """Full backlogs drop SYN packets, as firewalls do."""
    with contextlib.ExitStack() as stack:
        hole = stack.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        port = hole.getsockname()[1]
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        for wire in WIRES:
            urls = [f"{wire}://127.0.0.1:{port}", getattr(server, f"{wire}_url")]
            with Client(urls, timeout_s=10) as client:
                for _ in range(4):
                    assert client.classify(text="a leaf").label
            single = Client(urls[0], timeout_s=3, retries=Retries(max_attempts=1))
            with single, pytest.raises((ConnectionFailed, DeadlineExceeded)):
                single.classify(text="a leaf")


def test_a_server_restarted_under_load_costs_no_call_its_deadline(tmp_path_factory) -> None:
    """Killed and started anew on the same ports, while threads and tasks call over both wires."""
    repository = build_tiny_repository(tmp_path_factory.mktemp("restart") / "model_repository")
    outcomes: list[Outcome] = []
    stop = threading.Event()

    def call_from_thread(client: Client) -> None:
        while not stop.is_set():
            outcomes.append(outcome_of(client))
            time.sleep(0.005)

    async def call_from_tasks(urls: list[str]) -> None:
        async def call(client: AsyncClient) -> None:
            while not stop.is_set():
                outcomes.append(await outcome_of_async(client))
                await asyncio.sleep(0.005)

        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(AsyncClient(url, timeout_s=TIMEOUT_S)) for url in urls]
            await asyncio.gather(*(call(client) for client in clients for _ in range(2)))

    failures: list[BaseException] = []

    def guarded(run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            failures.append(error)

    with (
        Server(repository, http_port=0, grpc_port=0, metrics_port=0) as first,
        contextlib.ExitStack() as stack,
    ):
        first.wait_until_ready()
        ports = first.ports
        urls = [first.grpc_url, first.http_url]
        clients = [stack.enter_context(Client(url, timeout_s=TIMEOUT_S)) for url in urls]
        for client in clients:
            client.wait_until_ready(timeout_s=60)
        runs = [lambda client=client: call_from_thread(client) for client in clients for _ in range(3)]
        runs.append(lambda: asyncio.run(call_from_tasks(urls)))
        threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        stack.callback(lambda: [thread.join(30) for thread in threads])
        stack.callback(stop.set)

        time.sleep(1)
        first.process.kill()
        first.stop()
        with Server(
            repository, http_port=ports.http, grpc_port=ports.grpc, metrics_port=ports.metrics
        ) as second:
            second.wait_until_ready()
            for client in clients:
                client.wait_until_ready(timeout_s=60)
            num_before = len(outcomes)
            time.sleep(2)
            stop.set()
            for thread in threads:
                thread.join(30)

    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    kinds = Counter(type(outcome).__name__ for outcome in outcomes)
    assert kinds.keys() <= {"Answer", "ConnectionFailed", "DeadlineExceeded", "ModelNotReady"}, kinds
    assert kinds["ConnectionFailed"] > 0, kinds
    assert any(isinstance(outcome, Answer) for outcome in outcomes[num_before:]), kinds
    ids = [outcome.request_id for outcome in outcomes]
    assert len(set(ids)) == len(ids)
