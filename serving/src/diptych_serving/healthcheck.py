"""A probe for orchestrators: `python3 -m diptych_serving.healthcheck`.

The exit status is 0 if the answer is yes, and 1 with the reason if it is no.

Liveness (default): an inference is answered, or the server is busy or draining. If the probe's request gets
no answer but other requests do, the server counts as busy.
--loaded: the ensemble is loaded. This is cheap; a drain unloads the ensemble first.
--ready: the ensemble is loaded and an inference shows no fault.

It runs beside the server and uses loopback, the only place where HTTP listens if gRPC has TLS. Over the
network use GET /v2/models/classifier/ready: /v2/health/ready also answers 200 while the ensemble is
unloaded.

Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import sys

from diptych_serving.repository.layout import ENSEMBLE
from diptych_serving.server.ports import HTTP_PORT, METRICS_PORT
from diptych_serving.server.probe import Kind, ask, request
from diptych_serving.server.vitals import count_successes

TIMEOUT_S = 10.0


def find_fault(
    host: str, http_port: int, metrics_port: int, *, timeout_s: float, must_be_ready: bool
) -> str | None:
    """The fault as a sentence; None if there is none."""
    if must_be_ready and (words := find_unreadiness(host, http_port, timeout_s)):
        return words
    before = count_successes(host, metrics_port, timeout_s)
    reply = ask(host, http_port, timeout_s)
    if reply.kind in (Kind.ANSWERED, Kind.NOT_THERE, Kind.BUSY):
        return None
    after = count_successes(host, metrics_port, timeout_s)
    if reply.kind is Kind.SILENT and None not in (before, after) and before != after:
        return None
    return reply.words


def find_unreadiness(host: str, http_port: int, timeout_s: float) -> str | None:
    """Why the ensemble is not loaded; None if it is."""
    path = f"/v2/models/{ENSEMBLE}/ready"
    try:
        status, body = request(host, http_port, "GET", path, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        return f"{path}: {type(error).__name__}: {error}"
    return None if status == http.client.OK else f"{path}: HTTP {status} {body.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m diptych_serving.healthcheck")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, default=HTTP_PORT)
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds to wait for the answer")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--ready", action="store_true", help="loaded, and an inference shows no fault")
    kind.add_argument("--loaded", action="store_true", help="loaded, without an inference")
    options = parser.parse_args()
    if options.loaded:
        fault = find_unreadiness(options.host, options.http_port, options.timeout)
    else:
        fault = find_fault(
            options.host,
            options.http_port,
            options.metrics_port,
            timeout_s=options.timeout,
            must_be_ready=options.ready,
        )
    if fault:
        asked = "ready" if options.ready else "loaded" if options.loaded else "alive"
        sys.exit(f"not {asked}: {fault}")


if __name__ == "__main__":
    main()
