"""`diptych serve` as a process of its own, as the command line runs it, with what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from diptych_serving.server import leftovers

SERVE = """
import json, sys
from pathlib import Path
from diptych_serving.server import serve
from diptych_serving.server.supervisor import Restarts
options = json.loads(sys.argv[2])
restarts = Restarts(**options.pop("restarts", {}))
sys.exit(serve(Path(sys.argv[1]), http_port=0, grpc_port=0, metrics_port=0, restarts=restarts, **options))
"""
READY_TIMEOUT_S = 180
END_TIMEOUT_S = 90


class ServingProcess:
    """Started when made; `close` ends it and all that is its own.

    options  of `serve`; `restarts` as a mapping
    command  in its place, what takes the repository as its last argument
    """

    def __init__(
        self,
        repository: Path,
        *,
        command: Sequence[str] = (),
        **options: object,
    ) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, str(repository)]
            if command
            else [sys.executable, "-c", SERVE, str(repository), json.dumps(options)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.prefix = leftovers.owner_prefix(self.process.pid)

    def output(self) -> str:
        """What it has printed so far."""
        return Path(f"/proc/self/fd/{self._output.fileno()}").read_text()

    def wait_until_ready(self, num_starts: int = 1) -> None:
        """Until it has printed its addresses so many times: once, and once after each restart."""
        ends_at_s = time.monotonic() + READY_TIMEOUT_S
        while len(re.findall(r"^  metrics  ", self.output(), re.MULTILINE)) < num_starts:
            if self.process.poll() is not None or time.monotonic() > ends_at_s:
                pytest.fail(f"serve did not come up: {self.output()}")
            time.sleep(0.05)

    def wait_until_it_says(self, words: str) -> None:
        ends_at_s = time.monotonic() + READY_TIMEOUT_S
        while words not in self.output():
            if time.monotonic() > ends_at_s:
                pytest.fail(f"serve did not say {words!r}: {self.output()}")
            time.sleep(0.05)

    def url(self, wire: str) -> str:
        """Of its first start; a restart keeps the ports."""
        match = re.search(rf"^  {wire} +(\S+)", self.output(), re.MULTILINE)
        assert match, self.output()
        return match[1]

    def triton_pid(self) -> int:
        pids = leftovers.processes_of(self.prefix)
        (pid,) = (pid for pid in pids if (Path("/proc") / str(pid) / "comm").read_text() == "tritonserver\n")
        return pid

    def stub_pid(self, model: str) -> int:
        (pid,) = (child.pid for child in leftovers.children_of(self.triton_pid()) if child.model == model)
        return pid

    def left_behind(self) -> list[str]:
        files = [path.name for path in leftovers.files_of(self.prefix)]
        return files + [f"process {pid}" for pid in leftovers.processes_of(self.prefix)]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()
        leftovers.sweep(self.prefix)


def wait_for(condition: Callable[[], bool]) -> bool:
    ends_at_s = time.monotonic() + END_TIMEOUT_S
    while not condition() and time.monotonic() < ends_at_s:
        time.sleep(0.1)
    return condition()
