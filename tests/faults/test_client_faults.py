"""Whatever the wire does, every call ends in an answer or a typed error within its deadline."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from diptych_client import (
    Answer,
    AsyncClient,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ModelNotReady,
    Retries,
    ServerFault,
)
from diptych_serving.server import Server, ServerConfig, leftovers
from tests.helpers.hostile_proxy import Fault, HostileProxy
from tests.helpers.python_stubs import needs_python_stubs
from tests.helpers.tiny_repository import build_tiny_repository

TIMEOUT_S = 1.5
PAUSE_S = 0.02

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
    try:
        return client.classify(text="a leaf")
    except DiptychError as error:
        return error


async def outcome_of_async(client: AsyncClient) -> Outcome:
    try:
        return await client.classify(text="a leaf")
    except DiptychError as error:
        return error


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


class Load:
    """A context manager: inside the `with`, threads and tasks call a server over both wires.

    outcomes  what the calls ended in
    failures  what ended a caller; each call's time is checked too
    """

    def __init__(self, server: Server) -> None:
        self.outcomes: list[Outcome] = []
        self.failures: list[BaseException] = []
        self._urls = [server.grpc_url, server.http_url]
        self._is_over = threading.Event()
        runs = [
            *(functools.partial(self._call, url) for url in self._urls for _ in range(2)),
            self._call_async,
        ]
        self._threads = [threading.Thread(target=self._guard, args=(run,)) for run in runs]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def wait_for_answers(self, num: int) -> bool:
        """Until that many more answers have come."""
        start, ends_at_s = len(self.outcomes), time.monotonic() + 60
        while time.monotonic() < ends_at_s:
            if sum(isinstance(outcome, Answer) for outcome in self.outcomes[start:]) >= num:
                return True
            time.sleep(PAUSE_S)
        return False

    def _guard(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            self.failures.append(error)

    def _call(self, url: str) -> None:
        with Client(url, timeout_s=TIMEOUT_S) as client:
            while not self._is_over.is_set():
                self.outcomes.append(outcome_of(client))
                time.sleep(PAUSE_S)

    def _call_async(self) -> None:
        async def call(url: str) -> None:
            async with AsyncClient(url, timeout_s=TIMEOUT_S) as client:
                while not self._is_over.is_set():
                    self.outcomes.append(await outcome_of_async(client))
                    await asyncio.sleep(PAUSE_S)

        async def call_all() -> None:
            await asyncio.gather(*(call(url) for url in self._urls))

        asyncio.run(call_all())


def test_a_server_killed_and_restarted_under_load_costs_no_call_its_deadline(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    repository = build_tiny_repository(tmp_path_factory.mktemp("restart") / "model_repository")
    with Server(repository, ServerConfig.on_free_ports()) as first:
        first.wait_until_ready()
        with Load(first) as load:
            assert load.wait_for_answers(50)
            first.process.kill()
            first.stop()
            with first.successor() as second:
                second.wait_until_ready()
                assert load.wait_for_answers(50)

    assert load.failures == []
    kinds = Counter(type(outcome) for outcome in load.outcomes)
    assert kinds.keys() <= {Answer, ConnectionFailed, DeadlineExceeded, ModelNotReady}
    assert kinds[ConnectionFailed] > 0
    ids = [outcome.request_id for outcome in load.outcomes]
    assert len(set(ids)) == len(ids)


@needs_python_stubs
def test_only_a_deep_look_sees_that_a_models_process_is_dead(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A server that nobody supervises: `diptych serve` would start it again."""
    repository = build_tiny_repository(tmp_path_factory.mktemp("dead") / "model_repository")
    with Server(repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        (stub,) = (
            child for child in leftovers.children_of(server.process.pid) if child.model == "fusion_head"
        )
        os.kill(stub.pid, signal.SIGKILL)
        for wire in WIRES:
            with Client(f"{wire}://127.0.0.1:{port_of(server, wire)}", timeout_s=30) as client:
                assert client.health().is_healthy  # so says Triton
                health = client.health(deep=True)
                assert not health.is_healthy
                assert isinstance(health.error, ServerFault)
                assert "fusion_head" in health.error.message
        server.kill()  # an orderly end waits half a minute for the dead process
