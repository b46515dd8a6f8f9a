"""Drains a running tritonserver: it answers all accepted requests before it is stopped.

On SIGTERM tritonserver 2.51.0 refuses requests in flight (docs/triton.md, 5). So the ensemble is unloaded
first. Then new requests are refused ("unknown model", which clients send to another server; the model's
readiness URL answers 400), requests in flight finish, and the model repository's index shows when the last
has ended.

Standard library only. In a container that runs tritonserver itself, as a hook before it is stopped:
python3 -m diptych_serving.server.drain --http-port 8000
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Mapping

from diptych_serving.repository.layout import ENSEMBLE
from diptych_serving.server.probe import request
from diptych_serving.terminal import say

DRAIN_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 5.0
POLL_S = 0.1
# Triton stops counting a request when its answer is complete; the front end must still send it.
FLUSH_S = 0.5
# 2.51.0 keeps some requests of vanished callers forever, so the count may never reach zero. If no request
# ends for this time, the rest belong to vanished callers, or the server hangs. One batch of a large model on
# a slow CPU takes about a second.
STILL_S = 10.0
# States of the index besides READY, UNAVAILABLE and LOADING.
HELD_STATES = ("READY", "UNLOADING")


def drain(
    host: str,
    http_port: int,
    *,
    timeout_s: float = DRAIN_TIMEOUT_S,
    still_s: float = STILL_S,
    headers: Mapping[str, str] | None = None,
) -> str | None:
    """Refuse new requests, and return when all accepted ones have been answered.

    headers  the key of a restricted model-repository API
    returns  None; or why some may be unanswered, as text: the server should be stopped anyway
    """
    ends_at_s = time.monotonic() + timeout_s

    def call(path: str, method: str = "POST") -> str:
        sent = "{}" if method == "POST" else None
        status, body = request(host, http_port, method, path, CALL_TIMEOUT_S, sent, dict(headers or {}))
        if status != http.client.OK:
            raise _Refused(f"{path} was refused, HTTP {status}: {body.strip()}")
        return body

    try:
        call(f"/v2/repository/models/{ENSEMBLE}/unload")
        moved_s, finished = time.monotonic(), ""
        while _is_held(call("/v2/repository/index")):
            now_finished = _finished(call("/v2/models/stats", "GET"))
            if now_finished != finished:
                moved_s, finished = time.monotonic(), now_finished
            elif time.monotonic() - moved_s > still_s:
                say(
                    f"Triton still holds requests, but has finished none for {still_s:g} s: their callers "
                    "went away, or a model's process hangs. Not waiting for them."
                )
                return None
            if time.monotonic() > ends_at_s:
                return f"requests were still in flight after {timeout_s:.0f} s"
            time.sleep(POLL_S)
    except (OSError, http.client.HTTPException, _Refused) as error:
        return f"{type(error).__name__.lstrip('_')}: {error}"
    time.sleep(FLUSH_S)
    return None


class _Refused(Exception):
    """The server's control API refused."""


def _is_held(index: str) -> bool:
    return any(model["name"] == ENSEMBLE and model.get("state") in HELD_STATES for model in json.loads(index))


def _finished(statistics: str) -> str:
    """Counters that change whenever a model finishes a batch or a request."""
    models = json.loads(statistics)["model_stats"]
    return json.dumps(
        [[model["name"], model["execution_count"], model["inference_stats"]] for model in models]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python3 -m diptych_serving.server.drain", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--timeout-s", type=float, default=DRAIN_TIMEOUT_S)
    parser.add_argument(
        "--header", metavar="NAME=VALUE", action="append", default=[], help="the key of a restricted API"
    )
    options = parser.parse_args()
    headers = dict(header.split("=", 1) for header in options.header)
    if problem := drain(options.host, options.http_port, timeout_s=options.timeout_s, headers=headers):
        sys.exit(f"not drained: {problem}")


if __name__ == "__main__":
    main()
