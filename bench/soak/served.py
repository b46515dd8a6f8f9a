"""The server under test: `diptych serve` as a process of its own, whose ports outlive it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from diptych_client import Client, DiptychError, Retries
from diptych_serving.errors import UserError
from diptych_serving.server import children, leftovers
from diptych_serving.server.address import LOCALHOST
from diptych_serving.server.ports import Ports

START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 120.0
POLL_S = 0.1


class Served:
    """A context manager: inside the `with`, it runs."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._ports = Ports(http=0, grpc=0, metrics=0).settle(LOCALHOST)
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.urls = (f"grpc://{LOCALHOST}:{self._ports.grpc}", f"http://{LOCALHOST}:{self._ports.http}")
        self.http_address = (LOCALHOST, self._ports.http)

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        leftovers.sweep(self.prefix)
        self._said.close()

    def start(self) -> None:
        ports = [f"--{name}-port={getattr(self._ports, name)}" for name in ("http", "grpc", "metrics")]
        command = [sys.executable, "-m", "diptych.cli", "serve", str(self._repository), *ports]
        self.process = children.start(
            # The soak asks for more faults in a row than anybody would put up with.
            [*command, "--max-restarts=1000"],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )
        self.prefix = leftovers.owner_prefix(self.process.pid)
        self.wait_until_answering()

    def wait_until_answering(self) -> float:
        """Returns the seconds it took. Raises UserError where it does not come (back)."""
        began_s = time.monotonic()
        with Client(self.urls[0], timeout_s=5, retries=Retries(max_attempts=1)) as client:
            while True:
                try:
                    client.classify(text="ready?")
                    return time.monotonic() - began_s
                except DiptychError as error:
                    if self.process.poll() is not None or time.monotonic() - began_s > START_TIMEOUT_S:
                        raise UserError(f"the server does not answer: {error}\n{self.said()}") from None
                time.sleep(POLL_S)

    def wait_for_another(self, triton_pid: int | None) -> None:
        """Until the supervisor has started another tritonserver in the place of one."""
        ends_at_s = time.monotonic() + START_TIMEOUT_S
        while self.triton_pid() in (None, triton_pid):
            if self.process.poll() is not None or time.monotonic() > ends_at_s:
                raise UserError(f"the server was not started again\n{self.said()}")
            time.sleep(POLL_S)

    def end(self) -> tuple[int, list[str]]:
        """Ask it to stop. Returns its exit status, and what it left behind."""
        self.process.terminate()
        status = self.process.wait(END_TIMEOUT_S)
        files = [path.name for path in leftovers.files_of(self.prefix)]
        return status, files + [f"process {pid}" for pid in leftovers.processes_of(self.prefix)]

    def said(self) -> str:
        return Path(f"/proc/self/fd/{self._said.fileno()}").read_text()

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
        children = leftovers.children_of(parent) if parent else []
        return {child.model: child.pid for child in children if child.model}
