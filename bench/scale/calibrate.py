"""Measures what an item costs each step: CPU time of the step's processes, one request in flight at a time.

CPU time and not wall time, so that other work on the machine disturbs it little.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import urllib.request
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from bench.scale.costs import Costs, StepCost
from bench.scale.served import FRONT, busy_s, cpu_ns, load_catalogue, serving_on
from diptych_serving.progress import track
from diptych_serving.repository.layout import STEPS
from diptych_serving.server import Server

BATCH_SIZES = (1, 2, 4)
NUM_WARMUPS = 20
# Assumed for six hand-overs between processes: waiting for a core would be in a measurement of it.
HAND_OVERS_MS = 1.0


def calibrate(repository: Path, catalogue: Path, *, num_items: int = 48, num_rounds: int = 3) -> Costs:
    """Serve on one core and ask one request at a time, with 1, 2 and 4 rows. Raises UserError."""
    items = load_catalogue(catalogue, num_items)
    with serving_on(repository, min(os.sched_getaffinity(0))) as (server, start_s):
        client = triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
        for item in items[:NUM_WARMUPS]:
            _ask(client, [item])
        busy_before_s, began_s = busy_s(), time.monotonic()
        # The least of an item's rounds is its own cost, the rest is disturbance.
        rounds = [
            [_cost(server, client, [item]) for item in items]
            for _ in track(range(num_rounds), "measuring single items", num_rounds)
        ]
        batches = {
            size: [_cost(server, client, items[at : at + size]) for at in range(0, len(items), size)]
            for size in track(BATCH_SIZES, "measuring batches", len(BATCH_SIZES))
        }
        others = (busy_s() - busy_before_s) / (time.monotonic() - began_s)
        with urllib.request.urlopen(f"http://{server.contact}:{server.ports.metrics}/metrics") as answer:
            num_series = sum(1 for line in answer.read().splitlines() if line and not line.startswith(b"#"))
    singles = [
        {key: min(row[at][key] for row in rounds) for key in rounds[0][at]} for at in range(len(items))
    ]
    steps = {name: _fit(name, batches) for name in STEPS}
    means = {name: statistics.mean(single[name] for single in singles) for name in STEPS}
    files = [path for path in repository.rglob("*") if path.is_file()]
    return Costs(
        steps=steps,
        front_ms=statistics.mean(single[FRONT] for single in singles),
        idle_ms=HAND_OVERS_MS,
        items=[{name: single[name] / means[name] for name in STEPS} for single in singles],
        item_bytes=statistics.mean(len(image) + len(text.encode()) for image, text in items),
        start_s=start_s,
        release_mib=sum(path.stat().st_size for path in files) / 2**20,
        release_files=len(files),
        num_series=num_series,
        measured={
            "hardware": f"one core of {_cpu()}, {os.cpu_count()} cores",
            "versions": f"Python {platform.python_version()}, nvidia-pytriton {version('nvidia-pytriton')}",
            "busy_cores_of_all_processes": f"{others:.2f}",
            "load_average": f"{os.getloadavg()[0]:.1f}",
        },
    )


def _ask(client: triton.InferenceServerClient, items: Sequence[tuple[bytes, str]]) -> None:
    inputs = []
    columns = ([image for image, _ in items], [text.encode() for _, text in items])
    for name, values in zip(("image", "text"), columns, strict=True):
        inputs.append(triton.InferInput(name, [len(items), 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array(values, dtype=object).reshape(-1, 1))
    client.infer("classifier", inputs)


def _cost(
    server: Server, client: triton.InferenceServerClient, items: Sequence[tuple[bytes, str]]
) -> dict[str, float]:
    """Milliseconds of one request: CPU by step, their sum, and on the wall."""
    before, began_s = cpu_ns(server), time.monotonic()
    _ask(client, items)
    wall_ms, after = 1000 * (time.monotonic() - began_s), cpu_ns(server)
    spent = {name: (after[name] - before[name]) / 1e6 for name in before}
    return {**spent, "cpu": sum(spent.values()), "wall": wall_ms}


def _fit(name: str, batches: dict[int, list[dict[str, float]]]) -> StepCost:
    """A line through the lower quartiles of each batch size: others on the machine only make it slower."""
    sizes = np.array(list(batches), dtype=float)
    costs_ms = np.array([np.quantile([cost[name] for cost in batches[size]], 0.25) for size in batches])
    row_ms, fixed_ms = np.polyfit(sizes, costs_ms, 1)
    if fixed_ms < 0:
        row_ms, fixed_ms = float(np.mean(costs_ms / sizes)), 0.0
    return StepCost(fixed_ms=float(fixed_ms), row_ms=float(row_ms))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
