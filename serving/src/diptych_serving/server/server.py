"""One tritonserver over one repository, as a child process that leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from types import TracebackType

from diptych_serving.errors import UserError
from diptych_serving.repository.journal import undo_interrupted
from diptych_serving.server import launch, leftovers
from diptych_serving.server.address import LOCALHOST, Address
from diptych_serving.server.admin_key import AdminKey
from diptych_serving.server.config import ServerConfig
from diptych_serving.server.installation import find_installation
from diptych_serving.server.placement import require_hardware
from diptych_serving.server.ports import Ports
from diptych_serving.server.probe import ENSEMBLE, is_answering
from diptych_serving.server.shared_memory import require_shared_memory
from diptych_serving.server.triton_log import (
    describe_failure,
    describe_missing_gpu,
    describe_start,
    find_dead_stub,
)
from diptych_serving.server.waiting import says_what_it_waits_for
from diptych_serving.server.workspace import Workspace
from diptych_serving.terminal import say

READY_TIMEOUT_S = 300.0
POLL_S = 0.1
# How long requests in flight may take once the server is told to stop, and how long it may need on top.
EXIT_TIMEOUT_S = 30
UNLOAD_TIMEOUT_S = 15
# Python models must be up within this. Triton's 30 s are short where several import torch on two slow cores.
STUB_TIMEOUT_S = 180


class Server:
    """A context manager: inside the `with`, tritonserver runs; after it, all is gone.

    Start it from a thread that outlives it: when that thread ends, the kernel ends the server too.
    """

    def __init__(self, repository: Path, config: ServerConfig | None = None) -> None:
        """config  None: the default ports on loopback

        `self.config` always has a key; once started, also the ports that were chosen.
        """
        config = config or ServerConfig()
        self.admin_key = config.admin_key or AdminKey.random()
        self.config = dataclasses.replace(config, admin_key=self.admin_key)
        self.repository = repository
        self._prefix = leftovers.new_prefix()
        self.is_ready = False

    def successor(self) -> Server:
        """Another one, not started, like this one down to the ports that were chosen for it."""
        return Server(self.repository, self.config)

    @property
    def ports(self) -> Ports:
        return self.config.ports

    @property
    def owns_log(self) -> bool:
        """Whether the log is the workspace's and not a file that somebody named."""
        return self.config.log is None

    @cached_property
    def _address(self) -> Address:
        return Address.resolve(self.config.host)

    @property
    def _http_address(self) -> Address:
        """Loopback beside TLS: what must not be read on the way must not go over HTTP either."""
        return Address.resolve(LOCALHOST) if self.config.tls else self._address

    @property
    def contact(self) -> str:
        """The address to call from this machine, over gRPC and for metrics."""
        return str(self._address.contact)

    @property
    def http_contact(self) -> str:
        """The address to call over HTTP from this machine."""
        return str(self._http_address.contact)

    @property
    def http_url(self) -> str:
        return f"http://{self._http_address.contact.for_url}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """With the name that was given for `host` where there is TLS: the certificate is for that name."""
        scheme = "grpcs" if self.config.tls else "grpc"
        is_name = self.config.tls and self.config.host.strip("[]") != str(self._address)
        host = self.config.host if is_name else self._address.contact.for_url
        return f"{scheme}://{host}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._address.contact.for_url}:{self.ports.metrics}/metrics"

    def __enter__(self) -> Server:
        try:
            self._start()
        except BaseException:
            leftovers.sweep(self._prefix)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        require_repository(self.repository)
        undo_interrupted(self.repository, say)
        require_hardware(self.repository)
        installation = find_installation(self.config.tritonserver)
        leftovers.sweep_dead()
        ports = self.ports.settle(str(self._address))
        self.config = dataclasses.replace(self.config, ports=ports)
        self._claim = leftovers.claim(self._prefix)
        workspace = Workspace(self._prefix, installation, self.repository, self.config.settings)
        require_shared_memory(workspace.repository, has_native_pytorch=installation.has_native_pytorch)
        self.log = self.config.log or workspace.log
        names = {self.config.host, str(self._address), self._address.for_url}
        self.admin_key_file = self.admin_key.save(workspace.root, names, self.ports.grpc)
        command = [str(installation.binary.absolute()), *self._options(workspace)]
        self.log.write_bytes(b"")
        with self.log.open("ab") as log:  # appending, so that the file can be emptied while it is written
            self.process = subprocess.Popen(
                [sys.executable, "-I", launch.__file__, str(os.getpid()), *command],
                env=workspace.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal reaches this process alone, which then stops the server in good order.
                start_new_session=True,
            )

    def _options(self, workspace: Workspace) -> list[str]:
        return [
            f"--model-repository={workspace.repository}",
            f"--backend-directory={workspace.backends}",
            # Loads the ensemble and with it the parts that it names; releases come through the control API.
            "--model-control-mode=explicit",
            f"--load-model={ENSEMBLE}",
            # Our configs are complete; completing them would start each Python model twice.
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--http-address={self._http_address.for_http}",
            f"--http-port={self.ports.http}",
            f"--grpc-address={self._address.for_url}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-address={self._address.for_http}",
            f"--metrics-port={self.ports.metrics}",
            "--metrics-config=summary_latencies=true",
            *self.admin_key.options,
            *(self.config.tls.options if self.config.tls else []),
            *(self.config.tracing.options if self.config.tracing else []),
            f"--backend-config=python,{leftovers.REGION_OPTION}={self._prefix}",
            f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT_S}",
            *self.config.triton_options,
        ]

    def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return once the ensemble has answered a request; say meanwhile what is waited for.

        raises  UserError where the server cannot start
        """
        deadline = time.monotonic() + timeout_s
        with says_what_it_waits_for(lambda: describe_start(self._read_log())):
            while not self._is_answering():
                if self.process.poll() is not None:
                    raise UserError(f"tritonserver could not start: {self.describe_failure()}")
                if cause := find_dead_stub(self._read_log()):
                    raise UserError(f"tritonserver could not start a model's process: {cause}")
                if time.monotonic() > deadline:
                    raise UserError(
                        f"tritonserver is not ready after {timeout_s:.0f} s: {self.describe_failure()}"
                    )
                time.sleep(POLL_S)
        self.is_ready = True

    def _is_answering(self) -> bool:
        try:
            return is_answering(self.http_contact, self.ports.http)
        except UserError as error:
            raise UserError(f"{error}\n{self.describe_failure()}") from None

    def describe_failure(self) -> str:
        """Why the server ended, from its log."""
        return describe_failure(self._read_log())

    def describe_missing_gpu(self) -> str:
        """What its log says about GPUs that it does not use."""
        return describe_missing_gpu(self._read_log())

    def _read_log(self) -> str:
        """What it has written so far, or lately where that is much."""
        return self.log.read_text("utf-8", "replace")

    def kill(self) -> None:
        """End a server that is past an orderly end."""
        self.process.kill()
        self.process.wait()

    def stop(self, exit_timeout_s: float = EXIT_TIMEOUT_S + UNLOAD_TIMEOUT_S) -> int:
        """End the server, its stubs, its shared memory. Returns its exit status, negative for a signal."""
        try:
            # While it loads models it would put SIGTERM off, and nobody is being served.
            self.process.send_signal(signal.SIGTERM if self.is_ready else signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(exit_timeout_s)
        finally:
            self.process.kill()
            status = self.process.wait()
            leftovers.sweep(self._prefix)
            self._claim.close()
        return status


def require_repository(repository: Path) -> None:
    config = repository / ENSEMBLE / "config.pbtxt"
    if not config.is_file():
        raise UserError(
            f"{repository}: not a model repository, {config} is missing. "
            f"Make one from a trained run: diptych export RUN --to {repository}"
        )
    if not any(path.name.isdigit() for path in config.parent.iterdir()):
        raise UserError(
            f"{repository}: holds configs but no version of a model. model_repository/ in git is source; "
            "serve what `diptych export RUN --to DIRECTORY` makes from it."
        )
