"""Serves in the foreground, for the command line and for containers: until a signal or the last restart.

Standard library only: this is what runs in an image without the rest of Diptych's dependencies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from pathlib import Path

from diptych_serving.errors import UserError
from diptych_serving.repository.verification import verify_loaded
from diptych_serving.server.config import ServerConfig, Supervision
from diptych_serving.server.drain import drain
from diptych_serving.server.gpu import find_off_gpu
from diptych_serving.server.leftovers import reap_orphans
from diptych_serving.server.log_follower import MAX_LOG_BYTES, LogFollower
from diptych_serving.server.placement import belongs_on_gpu
from diptych_serving.server.server import READY_TIMEOUT_S, Server, require_repository
from diptych_serving.server.signals import Stopped, signals_raise_stopped
from diptych_serving.server.supervisor import Restarts, Watch
from diptych_serving.server.triton_log import deserves_showing
from diptych_serving.server.vitals import Vitals
from diptych_serving.terminal import say, show

POLL_S = 0.2
# For its stubs to end; whatever is then still there is ended and removed by us.
DRAINED_EXIT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why a server is no longer of use, after how long a time in which it was, and the status that tells."""

    reason: str
    was_well_s: float
    status: int


def serve(
    repository: Path,
    config: ServerConfig | None = None,
    supervision: Supervision | None = None,
    restarts: Restarts | None = None,
) -> int:
    """Start, print the addresses, stay; start again what died or hangs.

    config, supervision  None: the defaults
    restarts             how often; None: a few times in a row, with growing pauses
    returns              the status to exit with
    raises               UserError where the first start fails
    """
    server, supervision = Server(repository, config), supervision or Supervision()
    restarts = restarts or Restarts()
    with signals_raise_stopped():
        try:
            end = _run(server, supervision)
            while isinstance(end, Fault):
                pause_s = restarts.next_pause_s(end.was_well_s)
                if pause_s is None:
                    say(_last_words(restarts))
                    return end.status
                say(
                    f"Starting it again in {pause_s:g} s (restart {restarts.num_in_a_row} of at most "
                    f"{restarts.max_in_a_row} without {restarts.healthy_after_s:g} s of health between them)."
                )
                time.sleep(pause_s)
                server = server.successor()
                end = _run_again(server, supervision)
            return end
        except Stopped as stopped:  # while it was starting, or between two starts
            return stopped.status


def _run(server: Server, supervision: Supervision) -> int | Fault:
    """One server's whole life. Returns the status of one that a signal ended, or what was wrong with it."""
    require_repository(server.repository)
    verify_loaded(server.repository, supervision.public_key)
    with server, _whole_log(server) if supervision.shows_whole_log else contextlib.nullcontext():
        try:
            say("Starting tritonserver and loading the models ...")
            server.wait_until_ready(READY_TIMEOUT_S)
            if supervision.must_have_gpu or belongs_on_gpu(server.repository):
                _require_on_gpu(server)
            _print_addresses(server)
            with contextlib.nullcontext() if supervision.shows_whole_log else _warnings(server):
                return _stay(server, supervision.silence_s)
        except Stopped:
            if server.is_ready:
                return _end(server, supervision.drain_timeout_s)
            raise


def _require_on_gpu(server: Server) -> None:
    """Raise UserError where Triton has put a model elsewhere, which it does without an error."""
    if elsewhere := find_off_gpu(server.http_contact, server.ports.http):
        places = ", ".join(f"{model} is {kind}" for model, kind in elsewhere.items())
        raise UserError(
            f"the models belong on a GPU, and Triton has loaded them elsewhere: {places}. From its log:\n"
            f"{server.describe_missing_gpu()}"
        )


def _run_again(server: Server, supervision: Supervision) -> int | Fault:
    """The same, where an error is one more failure: the cause may pass, such as a disk that is full."""
    try:
        return _run(server, supervision)
    except UserError as error:
        say(f"It did not start: {error}")
        return Fault(str(error), was_well_s=0.0, status=1)


def _stay(server: Server, silence_s: float) -> Fault:
    """Until it ends by itself or has a fault."""
    began_s = time.monotonic()
    vitals = Vitals(
        server.process.pid,
        (server.http_contact, server.ports.http),
        (server.contact, server.ports.grpc),
        (server.contact, server.ports.metrics),
        is_secure=server.config.tls is not None,
        silence_s=silence_s,
    )
    with Watch(vitals) as watch:
        while server.process.poll() is None and watch.fault is None:
            reap_orphans(except_pid=server.process.pid)
            time.sleep(POLL_S)
    was_well_s = time.monotonic() - began_s
    if server.process.poll() is None:
        reason, status = f"tritonserver is unhealthy: {watch.fault}.", 1
        server.kill()  # its orderly end would wait half a minute for the process that is gone
    else:
        status = _shell_status(server.process.returncode) or 1
        reason = f"tritonserver ended by itself, with status {_shell_status(server.process.returncode)}."
    say(reason)
    return Fault(reason, was_well_s, status)


def _end(server: Server, drain_timeout_s: float) -> int:
    """Answer what was accepted, then stop in good order."""
    has_been_asked_twice = False

    def end_at_once(*_: object) -> None:
        nonlocal has_been_asked_twice
        has_been_asked_twice = True
        server.process.kill()

    # Who asks twice does not want to wait. SIGHUP is no second question: a terminal that closes may send two.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, end_at_once)
    say("Draining: new requests are refused, those in flight are answered; ask again to stop at once.")
    problem = drain(
        server.http_contact,
        server.ports.http,
        timeout_s=drain_timeout_s,
        headers=server.admin_key.http_headers,
    )
    is_drained = problem is None
    if problem and server.process.poll() is None:
        say(f"Not drained: {problem}")
    say("Stopping tritonserver.")
    if not is_drained:
        return _shell_status(server.stop())
    # Nothing is left to wait for, and yet it would: half a minute for idle keep-alive connections of HTTP.
    status = server.stop(DRAINED_EXIT_S)
    return _shell_status(status) if has_been_asked_twice else 0


def _last_words(restarts: Restarts) -> str:
    if restarts.max_in_a_row == 0:
        return "Not restarting here: what runs this process does that."
    return (
        f"Giving up: {restarts.max_in_a_row} restarts in a row did not help. The lines above say what is "
        f"wrong; the repository, the memory and the disk are what most often is."
    )


def _whole_log(server: Server) -> LogFollower:
    """For a container's engine, which keeps and rotates it."""
    max_bytes = MAX_LOG_BYTES if server.owns_log else None
    return LogFollower(server.log, say=show, is_shown=bool, from_start=True, max_bytes=max_bytes)


def _warnings(server: Server) -> LogFollower:
    """For a person at a terminal: what the server complains about from now on."""
    max_bytes = MAX_LOG_BYTES if server.owns_log else None
    return LogFollower(server.log, say=say, is_shown=deserves_showing, from_start=False, max_bytes=max_bytes)


def _print_addresses(server: Server) -> None:
    only_here = "  (no TLS in Triton: loopback only)" if server.config.tls else ""
    show(
        f"Serving {server.repository}; Ctrl-C stops it.\n"
        f"  gRPC     {server.grpc_url}\n"
        f"  HTTP     {server.http_url}{only_here}\n"
        f"  metrics  {server.metrics_url}\n"
        f"  releases need the key in {server.admin_key_file}, which `diptych release` finds here by itself"
    )


def _shell_status(returncode: int) -> int:
    """What a shell reports: 128 and the signal's number for a process that one ended."""
    return returncode if returncode >= 0 else 128 - returncode
