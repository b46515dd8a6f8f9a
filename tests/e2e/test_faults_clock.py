"""The wall clock jumps by hours under load, for server, supervisor and callers: nothing happens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_process import ServingProcess
from tiny_repository import build_tiny_repository

ROOT = Path(__file__).parents[2]
# Debian's libfaketime: wall clocks read from a file how far off they are; monotonic ones are left alone.
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
WALL_CLOCK = re.compile(r"\btime\.time\(|\bdatetime\.now\(|\butcnow\(|\btime\.(localtime|gmtime|ctime)\(")
# Calls both wires until its input ends, then says how the calls ended and how long the longest took.
CALLER = """
import collections, json, sys, threading, time
from diptych_client import Client, DiptychError
outcomes, is_over = collections.Counter(), threading.Event()
def call(url):
    with Client(url, timeout_s=20) as client:
        while not is_over.is_set():
            try:
                client.classify(text="a red cat")
                outcomes["Answer"] += 1
            except DiptychError as error:
                outcomes[repr(error)] += 1
threads = [threading.Thread(target=call, args=(url,)) for url in sys.argv[1:]]
for thread in threads: thread.start()
print(time.time(), flush=True)
for line in sys.stdin: print(time.time(), flush=True)
is_over.set()
for thread in threads: thread.join()
print(json.dumps(outcomes))
"""


@pytest.fixture
def faked(tmp_path: Path) -> dict[str, str]:
    """The environment of processes whose clock is as far off as a file says."""
    (tmp_path / "offset").write_text("+0")
    return {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(tmp_path / "offset"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.fixture
def serving(tmp_path: Path, faked: dict[str, str]) -> Iterator[ServingProcess]:
    repository = build_tiny_repository(tmp_path / "model_repository")
    started = ServingProcess(repository, environment=faked)
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.close()


@pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed (apt-get install libfaketime)")
def test_clock_jumps_by_hours_cost_no_answer_and_no_restart(
    serving: ServingProcess, faked: dict[str, str]
) -> None:
    offset = Path(faked["FAKETIME_TIMESTAMP_FILE"])
    urls = [serving.url("gRPC"), serving.url("HTTP")]
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, *urls],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **faked},
    ) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        clocks = [float(caller.stdout.readline())]
        for jump in ("+3h", "-3h", "+0"):
            offset.write_text(jump)
            time.sleep(2)
            caller.stdin.write("\n")
            caller.stdin.flush()
            clocks.append(float(caller.stdout.readline()))
        said, _ = caller.communicate()
    jumps_h = [round((clock - clocks[0]) / 3600) for clock in clocks]
    assert jumps_h == [0, 3, -3, 0]
    outcomes = json.loads(said)
    assert outcomes.keys() == {"Answer"}, outcomes
    assert outcomes["Answer"] > 20
    assert "not well" not in serving.output()


def test_nothing_that_serves_or_calls_reads_the_wall_clock() -> None:
    sources = [
        path
        for directory in ("training/src/diptych/serving", "client/src/diptych_client", "model_repository")
        for path in (ROOT / directory).rglob("*.py")
    ]
    assert len(sources) > 50
    assert [str(path) for path in sources if WALL_CLOCK.search(path.read_text("utf-8"))] == []
