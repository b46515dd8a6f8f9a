"""`serve` as the command line runs it: however it ends, no process and no shared memory stay behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_repository import build_tiny_repository

from diptych.serving import leftovers

SERVE = """
import sys
from pathlib import Path
from diptych.serving import serve
sys.exit(serve(Path(sys.argv[1]), http_port=0, grpc_port=0, metrics_port=0))
"""
READY_TIMEOUT_S = 120
END_TIMEOUT_S = 60


class Serving:
    """A `serve` process and what it prints."""

    def __init__(self, repository: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(repository)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.prefix = leftovers.owner_prefix(self.process.pid)

    def wait_until_ready(self) -> None:
        watchdog = threading.Timer(READY_TIMEOUT_S, self.process.kill)
        watchdog.start()
        for line in self.process.stdout:
            if "metrics" in line:  # the last line of the addresses
                break
        else:
            pytest.fail(f"serve did not come up: {self.process.stderr.read()}")
        watchdog.cancel()

    def triton_pid(self) -> int:
        pids = leftovers.processes_of(self.prefix)
        (pid,) = (pid for pid in pids if (Path("/proc") / str(pid) / "comm").read_text() == "tritonserver\n")
        return pid

    def left_behind(self) -> list[str]:
        files = [path.name for path in leftovers.files_of(self.prefix)]
        return files + [f"process {pid}" for pid in leftovers.processes_of(self.prefix)]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        leftovers.sweep(self.prefix)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_tiny_repository(tmp_path_factory.mktemp("lifecycle") / "model_repository")


@pytest.fixture
def serving(repository):
    started = Serving(repository)
    yield started
    started.close()


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + END_TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


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


def test_a_killed_tritonserver_ends_serve_with_a_message_and_leaves_nothing(serving):
    serving.wait_until_ready()
    os.kill(serving.triton_pid(), signal.SIGKILL)
    assert serving.process.wait(END_TIMEOUT_S) == 128 + signal.SIGKILL
    assert re.search(r"tritonserver ended by itself, with status 137", serving.process.stderr.read())
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
