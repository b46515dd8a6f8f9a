"""What callers do to a server with the queues that we ship: deadlines that expire in heaps, processes that
vanish in mid-request. It forgets them, and answers everybody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.served import START_TIMEOUT_S, ServedProcess, wait_for
from bench.soak.faults import vanish
from bench.storms import NUM_CALLS, expire
from diptych_client import Client
from diptych_serving.server import Server, ServerConfig
from diptych_serving.traffic import NO_RETRIES, outcomes
from tests.helpers.callers import calling
from tests.helpers.server_holdings import Holdings, num_pending
from tests.helpers.tiny_repository import SlowImageEncoder, build_tiny_repository, script_to, write_manifest


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose picture encoder takes as long as a real one, so that most deadlines expire in a queue."""
    repository = build_tiny_repository(tmp_path_factory.mktemp("callers") / "model_repository")
    script_to(repository / "image_encoder/1/model.pt", SlowImageEncoder())
    write_manifest(repository)
    return repository


@pytest.fixture(scope="module")
def busy(repository: Path) -> Iterator[Server]:
    with Server(repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        yield server


def expect_nothing_kept(server: Server, before: Holdings) -> None:
    """All queues are empty again, what the callers held is given back, and both wires answer."""
    assert wait_for(lambda: num_pending(server) == 0)
    # Pools of threads grow to what was once asked of them; a leak would be one of each for every call.
    allowed = {"descriptors": 20, "threads": 100, "processes": 0, "shared_memory_mib": 128}
    assert wait_for(lambda: not Holdings(server).has_grown_since(before, **allowed)), (
        before.counts,
        Holdings(server).counts,
    )
    assert server.process.poll() is None
    for url in (server.grpc_url, server.http_url):
        with Client(url, timeout_s=60) as client:
            assert client.classify(text="a red cat").label


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_thousand_deadlines_that_expire_leave_nothing_behind(busy: Server, wire: str) -> None:
    before = Holdings(busy)
    with Client({"http": busy.http_url, "grpc": busy.grpc_url}[wire], retries=NO_RETRIES) as client:
        ended = expire(lambda timeout_s: client.classify(text="a red cat", timeout_s=timeout_s))
    assert ended.total() == NUM_CALLS
    assert ended.keys() <= {"Answer", "DeadlineExceeded", "Overloaded"}, ended
    assert ended["DeadlineExceeded"] > 0
    expect_nothing_kept(busy, before)


def test_a_process_that_is_killed_in_mid_request_costs_nobody_else_an_answer(busy: Server) -> None:
    before = Holdings(busy)
    with calling([busy.grpc_url, busy.http_url], num_callers=4, timeout_s=60) as others:
        for _ in range(2):
            vanish(busy.http_url)
        assert others.wait_for_answers(20)
    assert outcomes(others.calls).keys() == {"Answer"}
    expect_nothing_kept(busy, before)


def test_over_grpc_that_costs_a_start_at_worst(repository: Path) -> None:
    """There, connections that are lost cancel their calls, and a race in that now and then ends 2.51.0."""
    with ServedProcess(repository) as served:
        served.wait_until_ready()
        for _ in range(2):
            vanish(served.url("gRPC"))
        with Client(served.url("gRPC"), timeout_s=60) as client:
            client.wait_until_ready(START_TIMEOUT_S)
            assert client.classify(text="a red cat").label
        assert served.process.poll() is None
