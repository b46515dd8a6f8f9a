"""A steady load below the peak: arrivals at random moments, latency counted from the moment intended.

Usage: python -m bench.speed.steady URL ITEMS RATE_PER_S DURATION_S
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from diptych_serving.tuning.closed_loop import Call, diptych_caller, load_items

MAX_CALLS_AT_ONCE = 128
WARMUP_S = 1.0


def measure_steadily(url: str, items: Path, *, rate_per_s: float, duration_s: float) -> dict[str, float]:
    """p50_ms, p99_ms and the number of items, from another process."""
    command = [
        sys.executable,
        "-m",
        "bench.speed.steady",
        url,
        str(items),
        str(rate_per_s),
        str(duration_s),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def offer(call: Call, items: list[tuple[bytes, str]], rate_per_s: float, duration_s: float) -> list[float]:
    """Latencies in milliseconds of all that was due after the warm-up; a Poisson process, always the same."""
    moments = random.Random(0)
    begin_s = time.monotonic()
    latencies_ms = []

    def ask(due_s: float, image: bytes, text: str) -> None:
        call(image, text)
        if due_s > begin_s + WARMUP_S:
            latencies_ms.append((time.monotonic() - due_s) * 1000)

    with ThreadPoolExecutor(MAX_CALLS_AT_ONCE) as pool:
        due_s, futures = begin_s, []
        while due_s < begin_s + WARMUP_S + duration_s:
            time.sleep(max(0.0, due_s - time.monotonic()))
            futures.append(pool.submit(ask, due_s, *items[len(futures) % len(items)]))
            due_s += moments.expovariate(rate_per_s)
        for future in futures:
            future.result()
    return latencies_ms


def main() -> None:
    url, path, rate_per_s, duration_s = sys.argv[1:]
    latencies_ms = offer(diptych_caller(url)(), load_items(Path(path)), float(rate_per_s), float(duration_s))
    p50, p99 = np.percentile(latencies_ms, [50, 99]).tolist()
    json.dump({"p50_ms": p50, "p99_ms": p99, "num_items": len(latencies_ms)}, sys.stdout)


if __name__ == "__main__":
    main()
