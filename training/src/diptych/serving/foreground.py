"""Serves in the foreground, for the command line: until a signal comes or the server ends."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

import typer

from diptych.progress import console
from diptych.serving.admin_key import AdminKey
from diptych.serving.ports import GRPC_PORT, HTTP_PORT, METRICS_PORT
from diptych.serving.server import LOCALHOST, READY_TIMEOUT_S, Server
from diptych.serving.settings import Settings
from diptych.serving.tls import ServerTls
from diptych.serving.triton_log import deserves_showing

SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_S = 0.2


class Stopped(BaseException):
    """A signal asks us to stop. No Exception: nothing on the way may take it for an error."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def serve(
    repository: Path,
    *,
    host: str = LOCALHOST,
    http_port: int = HTTP_PORT,
    grpc_port: int = GRPC_PORT,
    metrics_port: int = METRICS_PORT,
    tritonserver: Path | None = None,
    log: Path | None = None,
    settings: Settings | None = None,
    admin_key: AdminKey | None = None,
    tls: ServerTls | None = None,
) -> int:
    """Start, print the addresses, stay. Returns the status to exit with; raises UserError."""
    server = Server(
        repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        tritonserver=tritonserver,
        log=log,
        settings=settings,
        admin_key=admin_key,
        tls=tls,
    )
    with _signals_raise_stopped():
        try:
            with server:
                try:
                    with console.status("Starting tritonserver and loading the models"):
                        server.wait_until_ready(READY_TIMEOUT_S)
                    _print_addresses(server)
                    return _stay(server)
                except Stopped:
                    if server.is_ready:
                        return _end(server)
                    raise
        except Stopped as stopped:  # while it was starting
            return 128 + stopped.signum


def _stay(server: Server) -> int:
    """Show what the server complains about, until it ends by itself."""
    with server.log.open(encoding="utf-8", errors="replace") as log:
        log.seek(0, 2)
        while server.process.poll() is None:
            _show_news(log)
            time.sleep(POLL_S)
        _show_news(log)
    status = _shell_status(server.process.returncode)
    typer.echo(f"tritonserver ended by itself, with status {status}.", err=True)
    return status or 1


def _end(server: Server) -> int:
    """Stop in good order."""
    for signum in SIGNALS:  # whoever asks twice does not want to wait
        signal.signal(signum, lambda *_: server.process.kill())
    typer.echo("Stopping tritonserver; ask again to stop it at once.", err=True)
    return _shell_status(server.stop())


def _show_news(log: TextIO) -> None:
    for line in log:
        if deserves_showing(line):
            typer.echo(line.rstrip(), err=True)


def _print_addresses(server: Server) -> None:
    typer.echo(f"Serving {server.repository}; Ctrl-C stops it.")
    typer.echo(f"  gRPC     {server.grpc_url}")
    typer.echo(f"  HTTP     {server.http_url}{'  (no TLS in Triton: loopback only)' if server.tls else ''}")
    typer.echo(f"  metrics  {server.metrics_url}")
    typer.echo(
        f"  releases need the key in {server.admin_key_file}, which `diptych release` finds here by itself"
    )


@contextlib.contextmanager
def _signals_raise_stopped() -> Iterator[None]:
    before = {signum: signal.signal(signum, _raise_stopped) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _raise_stopped(signum: int, _: FrameType | None) -> None:
    for each in SIGNALS:  # a second one must not break into the cleaning up
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signum)


def _shell_status(returncode: int) -> int:
    """What a shell reports: 128 and the signal's number for a process that one ended."""
    return returncode if returncode >= 0 else 128 - returncode
