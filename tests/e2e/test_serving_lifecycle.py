"""`serve` as the command line runs it: however it ends, no process and no shared memory stay behind."""

import os
import signal

import pytest
from serving_process import END_TIMEOUT_S, ServingProcess, wait_for
from tiny_repository import build_tiny_repository

from diptych.serving import leftovers


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_tiny_repository(tmp_path_factory.mktemp("lifecycle") / "model_repository")


@pytest.fixture
def serving(repository):
    started = ServingProcess(repository)
    yield started
    started.close()


def test_sigterm_ends_all_in_good_order_with_tritons_status(serving):
    serving.wait_until_ready()
    assert len(serving.left_behind()) > 4
    serving.process.terminate()
    assert serving.process.wait(END_TIMEOUT_S) == 0
    assert serving.left_behind() == []


def test_a_signal_while_the_models_load_ends_all_at_once(serving):
    assert wait_for(lambda: len(list(leftovers.processes_of(serving.prefix))) > 2)
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(END_TIMEOUT_S) == 128 + signal.SIGINT
    assert serving.left_behind() == []


def test_tritonserver_follows_a_killed_serve_and_the_next_start_removes_the_rest(serving):
    serving.wait_until_ready()
    serving.process.kill()
    serving.process.wait()
    assert wait_for(lambda: not list(leftovers.processes_of(serving.prefix)))
    leftovers.sweep_dead()  # what every start begins with
    assert serving.left_behind() == []


def test_the_next_start_ends_the_orphans_of_a_server_killed_together_with_its_owner(serving):
    serving.wait_until_ready()
    triton_pid = serving.triton_pid()
    serving.process.kill()
    os.kill(triton_pid, signal.SIGKILL)
    serving.process.wait()
    assert serving.left_behind()
    leftovers.sweep_dead()
    assert serving.left_behind() == []
