"""Holds the simulation against real servers: one and two of them, a core each, under several loads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.scale.costs import Costs, read_plans
from bench.scale.fleet import Shape, run_steadily
from bench.scale.served import busy_s, cpu_ns, load_catalogue, on_cores, serving_on
from diptych_serving.progress import progress_bar
from diptych_serving.repository.settings import Settings
from diptych_serving.server import Server
from diptych_serving.traffic import Recording, Traffic, save_items, send_from_another_process

SHARES = (0.3, 0.5, 0.7, 0.85)
NUM_SEEDS = 20
TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One load, measured and simulated. The range holds 90 of 100 simulated runs of the same length.

    others_cores  that everything else on this machine used meanwhile
    """

    num_servers: int
    rate_per_s: float
    measured_p50_ms: float
    measured_p99_ms: float
    num_failed: int
    simulated_p50_ms: float
    simulated_p99_ms: float
    simulated_p99_range_ms: tuple[float, float]
    cpu_ms: float
    others_cores: float


def check(repository: Path, catalogue: Path, costs: Costs, *, duration_s: float = 40.0) -> list[Row]:
    """Real first, simulated after, so that the simulation takes no time from the servers."""
    cores = sorted(os.sched_getaffinity(0))
    capacity_per_s = 1000 / costs.cpu_ms()
    loads = [
        (number, share * number * capacity_per_s)
        for number in range(1, len(cores) + 1)[:2]
        for share in SHARES
    ]
    measured = []
    with progress_bar("measuring and simulating", 2 * len(loads)) as advance, contextlib.ExitStack() as stack:
        items = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "items"
        save_items(load_catalogue(catalogue, 256), items)
        servers: list[Server] = []
        for num_servers, rate_per_s in loads:
            if len(servers) < num_servers:
                servers.append(stack.enter_context(serving_on(repository, cores[num_servers - 1]))[0])
            measured.append(_measure(servers, cores, items, rate_per_s, duration_s))
            advance(1)
        stack.close()
        rows = []
        for (num_servers, rate_per_s), (recording, cpu_ms, others_cores) in zip(loads, measured, strict=True):
            simulated = _simulate(repository, costs, num_servers, rate_per_s, duration_s, recording)
            p50, p99 = np.percentile(latencies_ms(recording), [50, 99]).tolist()
            rows.append(
                Row(
                    num_servers=num_servers,
                    rate_per_s=rate_per_s,
                    measured_p50_ms=p50,
                    measured_p99_ms=p99,
                    num_failed=recording.num_errors,
                    cpu_ms=cpu_ms,
                    others_cores=others_cores,
                    **simulated,
                )
            )
            advance(1)
    return rows


def _measure(
    servers: Sequence[Server], cores: Sequence[int], items: Path, rate_per_s: float, duration_s: float
) -> tuple[Recording, float, float]:
    """The calls, the servers' CPU milliseconds an item, and the cores that others used."""

    def ours_s() -> float:
        return sum(sum(cpu_ns(server).values()) for server in servers) / 1e9

    # One server: the generator has the other cores for itself. Two: it shares theirs.
    free = set(cores[1:]) if len(servers) == 1 and len(cores) > 1 else set(cores)
    urls = [server.grpc_url for server in servers]
    traffic = Traffic(
        url=urls, items=items, calls_per_s=rate_per_s, duration_s=duration_s, timeout_s=TIMEOUT_S
    )
    with on_cores(free):
        before, began_s = (ours_s(), busy_s()), time.monotonic()
        recording = send_from_another_process(traffic)
        servers_s, all_s, passed_s = ours_s() - before[0], busy_s() - before[1], time.monotonic() - began_s
    cpu_ms = 1000 * servers_s / len(recording.calls)
    return recording, cpu_ms, (all_s - servers_s - recording.cpu_s) / passed_s


def latencies_ms(recording: Recording) -> list[float]:
    """Of the answered calls that were due after the warm-up."""
    return [
        call.latency_ms for call in recording.calls if call.is_answered and call.start_s > recording.begin_s
    ]


def _simulate(
    repository: Path,
    costs: Costs,
    num_servers: int,
    rate_per_s: float,
    duration_s: float,
    recording: Recording,
) -> dict[str, float | tuple[float, float]]:
    plans = read_plans(repository, Settings.for_cores(1))
    if num_servers > 1:  # the generator runs on the servers' cores
        client_ms = 1000 * recording.cpu_s / len(latencies_ms(recording))
        costs = dataclasses.replace(costs, front_ms=costs.front_ms + client_ms)
    shape = Shape(costs=costs, plans=plans, num_cores=1, num_callers=1, timeout_s=TIMEOUT_S)
    runs = [
        run_steadily(
            shape, num_pods=num_servers, rate_per_s=rate_per_s, duration_s=duration_s, p99_ms=500, seed=seed
        )
        for seed in range(NUM_SEEDS)
    ]
    low, high = np.percentile([run.p99_ms for run in runs], [5, 95]).tolist()
    return {
        "simulated_p50_ms": float(np.median([run.p50_ms for run in runs])),
        "simulated_p99_ms": float(np.median([run.p99_ms for run in runs])),
        "simulated_p99_range_ms": (low, high),
    }
