"""`serve` as the command line runs it: however it ends, no process and no shared memory stay behind."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from bench.served import END_TIMEOUT_S, ServedProcess, wait_for
from diptych_client import Client
from diptych_serving.server import leftovers
from tests.helpers.tiny_repository import build_tiny_repository

NOHUP = """
import os, signal
from diptych_serving.server.signals import Stopped, signals_raise_stopped
signal.signal(signal.SIGHUP, signal.SIG_IGN)
try:
    with signals_raise_stopped():
        os.kill(os.getpid(), signal.SIGHUP)
        print("ignored", end=", ")
        os.kill(os.getpid(), signal.SIGTERM)
except Stopped as stopped:
    print("then", stopped)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_tiny_repository(tmp_path_factory.mktemp("lifecycle") / "model_repository")


@pytest.fixture
def serving(repository):
    with ServedProcess(repository) as started:
        yield started


@pytest.mark.parametrize(("host", "contact"), [("localhost", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")])
def test_it_answers_where_it_was_told_to_listen_and_drains_when_the_terminal_closes(
    repository, tmp_path, monkeypatch, host, contact
):
    """With a path whose letters the encoding of the terminal lacks."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with ServedProcess(shutil.copytree(repository, tmp_path / "модель"), host=host) as serving:
        serving.wait_until_ready()
        for wire in ("gRPC", "HTTP"):
            url = serving.url(wire)
            assert f"//{contact}:" in url
            # On `::` gRPC listens on IPv4 too, HTTP does not (docs/triton.md, 2).
            others = [f"grpc://127.0.0.1:{url.rpartition(':')[2]}"] * (host == "::" and wire == "gRPC")
            for each in (url, *others):
                with Client(each) as client:
                    assert client.classify(text="cat").label
        assert "\\u043c\\u043e\\u0434" in serving.output()
        serving.process.send_signal(signal.SIGHUP)
        assert serving.process.wait(END_TIMEOUT_S) == 0
        assert "Draining" in serving.output()
        assert serving.left_behind() == []


def test_nohup_keeps_it_running_when_the_terminal_closes(repository):
    """Where the caller ignores SIGHUP, so does it."""
    command = [sys.executable, "-c", NOHUP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=END_TIMEOUT_S)
    assert output == "ignored, then SIGTERM\n"


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
