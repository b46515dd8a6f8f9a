"""`diptych serve` under load: what dies or hangs is started again, and SIGTERM costs nobody an answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.served import END_TIMEOUT_S, ServedProcess
from diptych_client import Retries
from diptych_serving.server import Server, Supervision
from diptych_serving.server.supervisor import Restarts
from diptych_serving.traffic import outcomes
from tests.helpers.callers import calling, is_refused
from tests.helpers.python_stubs import needs_python_stubs
from tests.helpers.tiny_repository import build_tiny_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_repository(tmp_path_factory.mktemp("faults") / "model_repository")


@pytest.fixture
def fragile(repository: Path) -> Iterator[ServedProcess]:
    """Gives up at the third fault in a row, and calls a server hung after three seconds."""
    restarts = Restarts(max_in_a_row=2, healthy_after_s=3600, first_pause_s=0.1)
    with ServedProcess(repository, supervision=Supervision(silence_s=3), restarts=restarts) as started:
        started.wait_until_ready()
        yield started


@pytest.fixture
def draining(repository: Path) -> Iterator[ServedProcess]:
    with ServedProcess(repository) as started:
        started.wait_until_ready()
        yield started


@needs_python_stubs
def test_a_dead_stub_and_a_dead_server_are_replaced_under_load_until_a_third_fault_in_a_row(
    fragile: ServedProcess,
) -> None:
    urls = [fragile.url("gRPC"), fragile.url("HTTP")]
    with calling(urls, timeout_s=5, retries=Retries(), pause_s=0.02) as traffic:
        assert traffic.wait_for_answers(50)
        os.kill(fragile.stub_pids()["text_encoder"], signal.SIGKILL)
        fragile.wait_until_ready(num_starts=2)
        assert traffic.wait_for_answers(50)
        assert "tritonserver is unhealthy: " in fragile.output()

        os.kill(fragile.triton_pid(), signal.SIGKILL)
        fragile.wait_until_ready(num_starts=3)
        assert traffic.wait_for_answers(50)
        assert "tritonserver ended by itself, with status 137" in fragile.output()
        assert "(restart 2 of at most 2 without 3600 s of health between them)" in fragile.output()

        os.kill(fragile.triton_pid(), signal.SIGSTOP)
        assert fragile.process.wait(END_TIMEOUT_S) == 1
    assert "no request was answered for " in fragile.output()
    assert "Giving up: 2 restarts in a row did not help." in fragile.output()
    assert fragile.left_behind() == []
    expected = {"Answer", "ConnectionFailed", "DeadlineExceeded", "ModelNotReady", "ServerFault"}
    assert outcomes(traffic.calls).keys() <= expected


def test_sigterm_under_load_answers_all_that_was_accepted_and_refuses_the_rest(
    draining: ServedProcess, server: Server
) -> None:
    """Callers of this server alone end at their first refusal; those that know another one see none."""
    alone = [draining.url("gRPC"), draining.url("HTTP")]
    with (
        calling(alone, num_callers=48, stops_at=is_refused) as refused,
        calling(
            [[alone[0], server.grpc_url], [alone[1], server.http_url]], retries=Retries(), pause_s=0.01
        ) as moved,
    ):
        assert refused.wait_for_answers(200)
        draining.process.terminate()
        assert draining.process.wait(END_TIMEOUT_S) == 0
        refused.join()
        assert moved.wait_for_answers(50)
    assert "Not drained" not in draining.output()
    assert draining.left_behind() == []
    assert outcomes(refused.calls)["ModelNotReady"] == 48
    assert outcomes(refused.calls).keys() == {"Answer", "ModelNotReady"}
    assert outcomes(moved.calls).keys() == {"Answer"}


@needs_python_stubs
def test_a_second_signal_ends_a_draining_server_at_once(draining: ServedProcess) -> None:
    with calling([draining.url("gRPC")], num_callers=4):
        stub = draining.stub_pids()["image_encoder"]
        os.kill(stub, signal.SIGSTOP)  # so that what is in flight stays there
        draining.process.terminate()
        draining.wait_until_it_says("Draining")
        draining.process.terminate()
        assert draining.process.wait(END_TIMEOUT_S) == 128 + signal.SIGKILL
    assert draining.left_behind() == []
