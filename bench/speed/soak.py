"""A long run of requests: whether items grow linearly with time, and whether memory grows."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from bench.speed.meter import Meter
from diptych_serving.server import Server
from diptych_serving.traffic import Traffic, send_from_another_process

SAMPLE_S = 1.0
CONCURRENCY = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soak:
    """One sample a second: seconds since the start, items answered, the server's memory.

    r_squared                of the straight line through items over seconds
    growth_mib               memory in the last tenth less that in the second tenth, after the warm-up
    """

    seconds: list[float]
    num_items: list[int]
    memory_mib: list[float]
    r_squared: float
    growth_mib: float


def soak(server: Server, items: Path, duration_s: float) -> Soak:
    """Load at full speed, and watch."""
    meter, samples, is_over = Meter(server.process.pid), [], threading.Event()
    answered_before = _answered(server)

    def watch() -> None:
        begin_s = time.monotonic()
        while not is_over.wait(SAMPLE_S):
            sample = (time.monotonic() - begin_s, _answered(server) - answered_before, meter.memory_mib())
            samples.append(sample)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        send_from_another_process(
            Traffic(
                url=server.grpc_url, items=items, num_callers=CONCURRENCY, duration_s=duration_s, warmup_s=0.0
            )
        )
    finally:
        is_over.set()
        watcher.join()
    loaded = [sample for sample in samples if sample[1] > 0]  # the loading process takes a while to start
    seconds, num_items, memory_mib = (list(column) for column in zip(*loaded, strict=True))
    tenth = max(1, len(memory_mib) // 10)
    return Soak(
        seconds=seconds,
        num_items=num_items,
        memory_mib=memory_mib,
        r_squared=float(np.corrcoef(seconds, num_items)[0, 1] ** 2),
        growth_mib=float(np.mean(memory_mib[-tenth:]) - np.mean(memory_mib[tenth : 2 * tenth])),
    )


def _answered(server: Server) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server.http_url}/v2/models/classifier/stats", timeout=30) as response:
        return sum(model["inference_count"] for model in json.load(response)["model_stats"])
