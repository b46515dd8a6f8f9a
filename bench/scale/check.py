"""Holds the simulation against real servers: one and two of them, a core each, under several loads."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from bench.scale.costs import Costs, read_plans
from bench.scale.fleet import Shape, run_steadily
from bench.scale.served import busy_s, cpu_ns, load_catalogue, on_cores, serving_on
from bench.speed.steady import WARMUP_S, offer
from diptych_client import Client, DiptychError
from diptych_serving.progress import progress_bar
from diptych_serving.repository.settings import Settings
from diptych_serving.server import Server

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offered:
    """What the generator saw: latencies in milliseconds, failed calls, and its own CPU time."""

    latencies_ms: list[float]
    num_failed: int
    cpu_s: float


def check(repository: Path, catalogue: Path, costs: Costs, *, duration_s: float = 40.0) -> list[Row]:
    """Real first, simulated after, so that the simulation takes no time from the servers."""
    cores = sorted(os.sched_getaffinity(0))
    items = load_catalogue(catalogue, 256)
    capacity_per_s = 1000 / costs.cpu_ms()
    loads = [
        (number, share * number * capacity_per_s)
        for number in range(1, len(cores) + 1)[:2]
        for share in SHARES
    ]
    measured = []
    with progress_bar("measuring and simulating", 2 * len(loads)) as advance, contextlib.ExitStack() as stack:
        servers: list[Server] = []
        for num_servers, rate_per_s in loads:
            if len(servers) < num_servers:
                servers.append(stack.enter_context(serving_on(repository, cores[num_servers - 1]))[0])
            measured.append(_measure(servers, cores, items, rate_per_s, duration_s))
            advance(1)
        stack.close()
        rows = []
        for (num_servers, rate_per_s), (offered, cpu_ms, others_cores) in zip(loads, measured, strict=True):
            simulated = _simulate(repository, costs, num_servers, rate_per_s, duration_s, offered)
            p50, p99 = np.percentile(offered.latencies_ms, [50, 99]).tolist()
            rows.append(
                Row(
                    num_servers=num_servers,
                    rate_per_s=rate_per_s,
                    measured_p50_ms=p50,
                    measured_p99_ms=p99,
                    num_failed=offered.num_failed,
                    cpu_ms=cpu_ms,
                    others_cores=others_cores,
                    **simulated,
                )
            )
            advance(1)
    return rows


def _measure(
    servers: Sequence[Server],
    cores: Sequence[int],
    items: list[tuple[bytes, str]],
    rate_per_s: float,
    duration_s: float,
) -> tuple[Offered, float, float]:
    """The generator's report, the servers' CPU milliseconds an item, and the cores that others used."""

    def ours_s() -> float:
        return sum(sum(cpu_ns(server).values()) for server in servers) / 1e9

    # One server: the generator has the other cores for itself. Two: it shares theirs.
    free = set(cores[1:]) if len(servers) == 1 and len(cores) > 1 else set(cores)
    urls = [server.grpc_url for server in servers]
    with on_cores(free), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.getpid).result()
        before, began_s = (ours_s(), busy_s()), time.monotonic()
        offered = pool.submit(generate, urls, items, rate_per_s, duration_s).result()
        servers_s, all_s, passed_s = ours_s() - before[0], busy_s() - before[1], time.monotonic() - began_s
    num_calls = len(offered.latencies_ms) * (1 + WARMUP_S / duration_s)
    return offered, 1000 * servers_s / num_calls, (all_s - servers_s - offered.cpu_s) / passed_s


def generate(
    urls: list[str], items: list[tuple[bytes, str]], rate_per_s: float, duration_s: float
) -> Offered:
    """Calls at random moments, in a process of its own."""
    num_failed = 0
    with Client(urls, timeout_s=TIMEOUT_S) as client:
        for image, text in items[: 8 * len(urls)]:
            client.classify(image=image, text=text or None)

        def call(image: bytes, text: str) -> None:
            nonlocal num_failed
            try:
                client.classify(image=image, text=text or None)
            except DiptychError:
                num_failed += 1

        cpu_s = time.process_time()
        latencies_ms = offer(call, items, rate_per_s, duration_s)
        return Offered(latencies_ms=latencies_ms, num_failed=num_failed, cpu_s=time.process_time() - cpu_s)


def _simulate(
    repository: Path, costs: Costs, num_servers: int, rate_per_s: float, duration_s: float, offered: Offered
) -> dict[str, float | tuple[float, float]]:
    plans = read_plans(repository, Settings.for_cores(1))
    if num_servers > 1:  # the generator runs on the servers' cores
        client_ms = 1000 * offered.cpu_s / len(offered.latencies_ms)
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
