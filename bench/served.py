"""`diptych serve` as a process of its own, with what it prints: for the soak, and for tests."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from diptych_client import Client, DiptychError, Retries
from diptych_serving.errors import UserError
from diptych_serving.server import Supervision, children, leftovers
from diptych_serving.server.address import LOCALHOST
from diptych_serving.server.supervisor import Restarts

SERVE = """
import json, sys
from pathlib import Path
from diptych_serving.server import ServerConfig, Supervision, serve
from diptych_serving.server.ports import Ports
from diptych_serving.server.supervisor import Restarts
host, ports, supervision, restarts = json.loads(sys.argv[1])
config = ServerConfig(host=host, ports=Ports(**ports))
sys.exit(serve(Path(sys.argv[2]), config, Supervision(**supervision), Restarts(**restarts)))
"""
WIRES = ("HTTP", "gRPC", "metrics")
START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 120.0
POLL_S = 0.05


class ServedProcess:
    """A context manager: inside the `with`, it runs; after it, the process and all that is its own are gone.

    supervision  without a public key
    command      in place of `serve`: a command that takes the repository as its last argument
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = LOCALHOST,
        supervision: Supervision | None = None,
        restarts: Restarts | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self._repository, self._host, self._entry = repository, host, command
        self._options = [
            dataclasses.asdict(supervision or Supervision()),
            dataclasses.asdict(restarts or Restarts()),
        ]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115

    def __enter__(self) -> ServedProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()
        leftovers.sweep(self.prefix)

    def start(self) -> None:
        """For the first time, on free ports; or again after its end, on the same ports."""
        ports = {wire.lower(): urlsplit(self.url(wire)).port if self.output() else 0 for wire in WIRES}
        values = json.dumps([self._host, ports, *self._options])
        command = self._entry or (sys.executable, "-c", SERVE, values)
        self.process = children.start(
            [*command, str(self._repository)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self.prefix = leftovers.owner_prefix(self.process.pid)

    def end(self) -> tuple[int, list[str]]:
        """Send SIGTERM. Returns its exit status, and what it left behind."""
        self.process.terminate()
        return self.process.wait(END_TIMEOUT_S), self.left_behind()

    def left_behind(self) -> list[str]:
        """Its files and processes that are there now."""
        files = [path.name for path in leftovers.files_of(self.prefix)]
        return files + [f"process {pid}" for pid in leftovers.processes_of(self.prefix)]

    def output(self) -> str:
        """What it has printed so far."""
        return Path(f"/proc/self/fd/{self._output.fileno()}").read_text()

    def url(self, wire: str) -> str:
        """Of `gRPC`, `HTTP` or `metrics`, once it is ready; a restart keeps it."""
        match = re.search(rf"^  {wire} +(\S+)", self.output(), re.MULTILINE)
        if match is None:
            raise UserError(f"serve has printed no {wire} address: {self.output()}")
        return match[1]

    @property
    def urls(self) -> tuple[str, str]:
        """Of gRPC and of HTTP."""
        return self.url("gRPC"), self.url("HTTP")

    def wait_until_ready(self, num_starts: int = 1) -> None:
        """Return once it has printed its addresses that many times: it does so after each restart too."""
        self._wait(
            lambda: len(re.findall(r"^  metrics  ", self.output(), re.MULTILINE)) >= num_starts,
            "did not become ready",
        )

    def wait_until_it_says(self, words: str) -> None:
        self._wait(lambda: words in self.output(), f"did not say {words!r}")

    def wait_until_answering(self) -> None:
        """Return once the ensemble answers over gRPC."""
        with Client(self.url("gRPC"), timeout_s=5, retries=Retries(max_attempts=1)) as client:

            def is_answering() -> bool:
                with contextlib.suppress(DiptychError):
                    return bool(client.classify(text="ready?").label)
                return False

            self._wait(is_answering, "does not answer")

    def wait_for_another(self, triton_pid: int | None) -> None:
        """Return once another tritonserver runs in place of this one."""
        self._wait(lambda: self.triton_pid() not in (None, triton_pid), "did not start its server again")

    def _wait(self, condition: Callable[[], bool], problem: str) -> None:
        if not wait_for(lambda: condition() or self.process.poll() is not None, START_TIMEOUT_S):
            raise UserError(f"serve {problem}: {self.output()}")
        if self.process.poll() is not None and not condition():
            raise UserError(f"serve has ended and {problem}: {self.output()}")

    def triton_pid(self) -> int | None:
        """None between a death and the next start."""
        for pid in leftovers.processes_of(self.prefix):
            with contextlib.suppress(FileNotFoundError):
                if Path(f"/proc/{pid}/comm").read_text() == "tritonserver\n":
                    return pid
        return None

    def stub_pids(self) -> dict[str, int]:
        """By model."""
        parent = self.triton_pid()
        found = leftovers.children_of(parent) if parent else []
        return {child.model: child.pid for child in found if child.model}


def wait_for(condition: Callable[[], bool], timeout_s: float = END_TIMEOUT_S) -> bool:
    """Ask again and again. Returns whether it has become true in time."""
    ends_at_s = time.monotonic() + timeout_s
    while not (is_true := condition()) and time.monotonic() < ends_at_s:
        time.sleep(POLL_S)
    return is_true
