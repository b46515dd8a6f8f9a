"""A probe for orchestrators: `python3 -m diptych_serving.healthcheck`. Status 0: yes; 1: no, and why.

Liveness, the default: an inference is answered, or the server is merely busy or draining. A probe has no
memory: where the question gets no answer, it looks whether others got theirs meanwhile, and calls that busy.
--loaded: the ensemble is loaded. Cheap, so that it can be asked every few seconds; a drain unloads it first.
--ready: the ensemble is loaded and an inference shows nothing broken.

It runs beside the server and asks it over loopback, where HTTP always is: with TLS it is nowhere else. What
asks over the network can use GET /v2/models/classifier/ready; /v2/health/ready says 200 also when the
ensemble is unloaded.

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
    """What is wrong, in words; None where nothing is."""
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
    """Why the ensemble is not loaded, in words; None where it is."""
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
    kind.add_argument("--ready", action="store_true", help="loaded, and an inference shows nothing broken")
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
