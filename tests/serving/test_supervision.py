"""What counts as a sick server, how often it is started again, and what an image must hold to do so."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import diptych_serving
from diptych_serving.server import leftovers
from diptych_serving.server.probe import Kind, Reply, grpc_responds
from diptych_serving.server.supervisor import Restarts
from diptych_serving.server.vitals import Vitals

ANSWERED = Reply(Kind.ANSWERED, "")
BUSY = Reply(Kind.BUSY, "HTTP 503: Exceeds maximum queue size")
SILENT = Reply(Kind.SILENT, "TimeoutError: timed out")
UNLOADED = Reply(Kind.NOT_THERE, "HTTP 400: Request for unknown model")
BROKEN = Reply(Kind.BROKEN, "HTTP 500: CUDA error: device-side assert triggered")
DEAD_STUB = Reply(Kind.BROKEN, "HTTP 500: Stub process 'preprocess_0_0' is not healthy.")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vitals(clock: Clock) -> Vitals:
    return Vitals(1, *3 * [("127.0.0.1", 0)], silence_s=30, clock=clock)


def judge_for(vitals: Vitals, clock: Clock, seconds: int, reply: Reply, *, answers_per_s: float) -> list:
    """What is found on the way, asking every five seconds while others get answers at a rate."""
    faults = []
    for _ in range(seconds // 5):
        clock.now_s += 5
        faults.append(vitals.judge(reply, clock.now_s * answers_per_s))
    return [fault for fault in faults if fault]


@pytest.mark.parametrize("reply", [BUSY, SILENT])
def test_a_server_that_refuses_us_is_busy_as_long_as_others_get_answers(vitals, clock, reply) -> None:
    assert judge_for(vitals, clock, 600, reply, answers_per_s=0.2) == []


@pytest.mark.parametrize("reply", [BUSY, SILENT])
def test_a_server_that_has_answered_nobody_for_long_is_hung(vitals, clock, reply) -> None:
    assert judge_for(vitals, clock, 30, reply, answers_per_s=0) == []
    (fault, *_) = judge_for(vitals, clock, 5, reply, answers_per_s=0)
    assert fault == f"no request was answered for 35 s; the last try: {reply.words}"


def test_a_server_without_metrics_is_judged_by_our_own_question(vitals, clock) -> None:
    for _ in range(6):
        clock.now_s += 5
        assert vitals.judge(SILENT, None) is None
    clock.now_s += 5
    assert vitals.judge(ANSWERED, None) is None
    clock.now_s += 31
    assert "no request was answered for 31 s" in vitals.judge(SILENT, None)


def test_an_ensemble_that_somebody_unloaded_is_no_fault(vitals, clock) -> None:
    assert judge_for(vitals, clock, 600, UNLOADED, answers_per_s=0) == []


def test_one_error_of_a_dead_stub_is_proof_and_any_other_error_is_the_third_time(vitals, clock) -> None:
    assert "is not healthy" in vitals.judge(DEAD_STUB, 0)
    assert vitals.judge(ANSWERED, 1) is None
    assert vitals.judge(BROKEN, 2) is None
    assert vitals.judge(BROKEN, 3) is None
    assert vitals.judge(ANSWERED, 4) is None
    assert [bool(vitals.judge(BROKEN, 5)) for _ in range(3)] == [False, False, True]


def test_grpc_that_has_not_responded_for_long_is_a_fault_though_http_answers(vitals, clock) -> None:
    assert vitals.judge_grpc(False) is None
    clock.now_s += 25
    assert vitals.judge_grpc(True) is None
    clock.now_s += 30
    assert vitals.judge_grpc(False) is None
    clock.now_s += 1
    assert vitals.judge(ANSWERED, 1) is None
    assert vitals.judge_grpc(False) == "gRPC has not responded for 31 s"


def test_a_port_that_accepts_and_sends_nothing_does_not_respond() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        for is_secure in (False, True):
            assert not grpc_responds(host, port, is_secure=is_secure, timeout_s=0.1)
    assert not grpc_responds(host, port, is_secure=False, timeout_s=0.1)  # nobody listens


@pytest.fixture
def stubs(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two children of ours that look like the stubs of one version."""
    file = tmp_path / "text_encoder/2/model.py"
    file.parent.mkdir(parents=True)
    file.write_text("import time; time.sleep(600)")
    started = [subprocess.Popen([leftovers.STUB, str(file)], executable=sys.executable) for _ in range(2)]
    try:
        ends_at_s = time.monotonic() + 30
        while sum(child.model == "text_encoder" for child in leftovers.children_of(os.getpid())) < 2:
            assert time.monotonic() < ends_at_s, "the stubs do not show in /proc"
        yield started
    finally:
        for stub in started:
            stub.kill()
            stub.wait()


@pytest.fixture
def models() -> Iterator[ThreadingHTTPServer]:
    """Answers which models it has loaded, with how many instances each: `.loaded`, path to instance_group."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            groups = self.server.loaded.get(self.path)
            body = json.dumps({"instance_group": groups}).encode()
            self.send_response(400 if groups is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.loaded = {}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


CONFIG_URL = "/v2/models/text_encoder/versions/2/config"


def look_twice(vitals: Vitals, clock: Clock) -> str | None:
    assert vitals.find_dead_process() is None
    clock.now_s += 3
    return vitals.find_dead_process()


@pytest.mark.parametrize(
    "groups",
    [
        [{"kind": "KIND_CPU", "count": 2, "gpus": []}],
        [{"kind": "KIND_GPU", "count": 1, "gpus": [0, 1]}],
        [{"kind": "KIND_CPU", "count": 1, "gpus": []}, {"kind": "KIND_CPU", "count": 1, "gpus": []}],
    ],
)
def test_a_dead_process_that_somebody_else_has_reaped_is_found(stubs, models, clock, groups) -> None:
    vitals = Vitals(os.getpid(), models.server_address, *2 * [("127.0.0.1", 0)], clock=clock)
    models.loaded[CONFIG_URL] = groups
    assert look_twice(vitals, clock) is None
    stubs[0].kill()
    stubs[0].wait()
    assert look_twice(vitals, clock) == f"the process of text_encoder died (process {stubs[0].pid})"


def test_a_dead_process_that_nobody_reaps_is_found_without_a_question(stubs, clock) -> None:
    vitals = Vitals(os.getpid(), *3 * [("127.0.0.1", 0)], clock=clock)
    assert vitals.find_dead_process() is None
    stubs[0].kill()
    os.waitid(os.P_PID, stubs[0].pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert look_twice(vitals, clock) == f"the process of text_encoder died (process {stubs[0].pid})"


def test_processes_that_end_with_their_version_or_its_instances_are_no_fault(stubs, models, clock) -> None:
    vitals = Vitals(os.getpid(), models.server_address, *2 * [("127.0.0.1", 0)], clock=clock)
    models.loaded[CONFIG_URL] = [{"kind": "KIND_CPU", "count": 2, "gpus": []}]
    assert look_twice(vitals, clock) is None
    models.loaded[CONFIG_URL] = [{"kind": "KIND_CPU", "count": 1, "gpus": []}]
    stubs[0].kill()
    stubs[0].wait()
    assert look_twice(vitals, clock) is None
    del models.loaded[CONFIG_URL]
    stubs[1].kill()
    stubs[1].wait()
    assert look_twice(vitals, clock) is None


def test_restarts_pause_longer_each_time_end_at_a_limit_and_begin_anew_after_health() -> None:
    restarts = Restarts(max_in_a_row=3, healthy_after_s=60, first_pause_s=1, last_pause_s=3)
    assert [restarts.next_pause_s(0) for _ in range(4)] == [1, 2, 3, None]
    assert restarts.next_pause_s(61) == 1
    assert Restarts(max_in_a_row=0).next_pause_s(1e9) is None


@pytest.mark.parametrize("module", ["container", "healthcheck", "server.drain"])
def test_what_a_container_starts_with_needs_the_standard_library_alone(module: str) -> None:
    # -S: no site-packages.
    source = str(Path(diptych_serving.__file__).parents[1])
    command = [sys.executable, "-S", "-c", f"import diptych_serving.{module}"]
    subprocess.run(command, check=True, env={"PYTHONPATH": source})


CLAIM = """
import os, sys, time
from diptych_serving.server import leftovers
prefix = leftovers.new_prefix()
lock = leftovers.claim(prefix)
open(leftovers.SHARED_MEMORY / f"{prefix}region", "w").close()
print(prefix, flush=True)
time.sleep(600)
"""


def test_what_a_dead_container_left_in_shared_memory_is_removed_and_a_living_ones_is_not() -> None:
    """Two PID namespaces and one /dev/shm, as a pod's containers have them."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", CLAIM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdout is not None
        prefix = container.stdout.readline().strip()
        try:
            assert prefix
            leftovers.sweep_dead()
            assert len(leftovers.files_of(prefix)) == 2
        finally:
            container.kill()
    ends_at_s = time.monotonic() + 30  # its first process dies a moment after `unshare`
    while leftovers.files_of(prefix) and time.monotonic() < ends_at_s:
        leftovers.sweep_dead()
    assert leftovers.files_of(prefix) == []
