"""Measures one pair in all systems; every round measures each system in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.speed.inprocess import run_in_processes
from bench.speed.meter import Meter
from bench.speed.pairs import Pair
from bench.speed.quiet import LIMIT_CORES, others_load
from bench.speed.soak import Soak, soak
from diptych_serving.errors import UserError
from diptych_serving.hardware import num_cores
from diptych_serving.progress import console
from diptych_serving.repository.settings import Settings
from diptych_serving.server import Server, ServerConfig, children
from diptych_serving.traffic import Traffic, save_items, send_from_another_process
from diptych_serving.tuning.load import measure_load

CONCURRENCIES = {"grpc": (1, 2, 4, 8, 16, 32), "http": (16,)}
BATCH_SIZES = (1, 8, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """Another server.

    app       a module of bench.peers
    is_eager  as its own documentation shows: it loads the run. Otherwise it serves our exported TorchScript
    """

    app: str
    is_eager: bool

    @property
    def concurrencies(self) -> tuple[int, ...]:
        return (4, 16) if self.is_eager else (1, 2, 4, 8, 16)

    @property
    def caller(self) -> str:
        return f"bench.peers.callers:{self.app}_caller"


DOCUMENTED = {f"{app}, eager": Peer(app=app, is_eager=True) for app in ("litserve", "fastapi")}
WITH_OUR_GRAPHS = {f"{app}, our graphs": Peer(app=app, is_eager=False) for app in ("litserve", "fastapi")}
PEERS = {**DOCUMENTED, **WITH_OUR_GRAPHS}
SHARE_OF_PEAK = 0.7
PEER_READY_S = 180.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure. Seconds are for one load of one system in one round."""

    num_rounds: int = 5
    load_s: float = 2.0
    steady_s: float = 30.0
    soak_s: float = 60.0
    target: str = "cpu"


QUICK = Plan(num_rounds=1, load_s=2.0, steady_s=4.0, soak_s=8.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One load of one system: the median of its rounds, and the lowest and highest throughput."""

    system: str
    load: str
    items_per_s: float
    lowest_items_per_s: float
    highest_items_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    server_cpu_ms: float
    client_cpu_ms: float
    memory_mib: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """All about one pair, and how it was served.

    others_load  cores that other processes were using before each round
    """

    precision: str
    others_load: list[float]
    settings: Settings
    measurements: list[Measurement]
    steady: dict[str, float]
    soak: Soak

    def best(self, *systems: str) -> Measurement:
        """The load with the highest throughput of these systems."""
        return max((m for m in self.measurements if m.system in systems), key=lambda m: m.items_per_s)

    @property
    def is_quiet(self) -> bool:
        """Whether the machine was ours in every round."""
        return max(self.others_load) <= LIMIT_CORES

    def ratios(self) -> dict[str, float]:
        """The figures that the project promises."""
        ensemble = self.best("ensemble grpc", "ensemble http")
        # The cheapest batch size is not always the fastest: texts are padded to the longest of their batch.
        ceiling_cpu_ms = min(m.server_cpu_ms for m in self.measurements if m.system == "ceiling")
        return {
            "throughput_over_article": ensemble.items_per_s / self.best("article").items_per_s,
            "cpu_ms_ceiling_over_server": ceiling_cpu_ms / ensemble.server_cpu_ms,
            "throughput_over_best_peer": ensemble.items_per_s / self.best(*WITH_OUR_GRAPHS).items_per_s,
            "throughput_over_best_documented_peer": ensemble.items_per_s / self.best(*DOCUMENTED).items_per_s,
            "p99_over_p50_at_70pct": self.steady["p99_ms"] / self.steady["p50_ms"],
        }


def measure_pair(pair: Pair, plan: Plan, directory: Path) -> Outcome:
    """Start all servers, measure in rounds, then the steady load and the soak of ours."""
    items = directory / "items"
    save_items(pair.items, items)
    rounds: dict[tuple[str, str], list[dict[str, float]]] = {}
    loads: list[float] = []
    device = "cuda" if plan.target == "gpu" else "cpu"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(pair.repository, ServerConfig.on_free_ports()))
        server.wait_until_ready()
        peers = {
            name: stack.enter_context(
                _run_peer(peer.app, pair.run.directory if peer.is_eager else pair.torchscript, device)
            )
            for name, peer in PEERS.items()
        }
        meters = {"ensemble": Meter(server.process.pid)}
        meters.update({name: Meter(process.pid) for name, (process, _) in peers.items()})
        for meter in meters.values():
            meter.suspend()
            stack.callback(meter.resume)  # before they are told to end
        for number in range(plan.num_rounds):
            loads.append(others_load())
            busy = "" if loads[-1] <= LIMIT_CORES else f", others use {loads[-1]:.1f} cores"
            console.print(f"{pair.name}: round {number + 1} of {plan.num_rounds}{busy}", highlight=False)
            in_process = [("article", pair.run.directory, 1)]
            in_process += [("ceiling", pair.repository, size) for size in BATCH_SIZES]
            for what, source, size in in_process:
                found = _in_process(what, source, items, plan.load_s, size, device)
                rounds.setdefault((what, f"batch {size}"), []).append(found)
            with meters["ensemble"].awake():
                for protocol, concurrencies in CONCURRENCIES.items():
                    url = getattr(server, f"{protocol}_url")
                    for concurrency in concurrencies:
                        found = _loaded(meters["ensemble"], url, items, concurrency, plan.load_s, "diptych")
                        key = (f"ensemble {protocol}", f"{concurrency} callers")
                        rounds.setdefault(key, []).append(found)
            for name, (_, url) in peers.items():
                with meters[name].awake():
                    for concurrency in PEERS[name].concurrencies:
                        caller = PEERS[name].caller
                        found = _loaded(meters[name], url, items, concurrency, plan.load_s, caller)
                        rounds.setdefault((name, f"{concurrency} callers"), []).append(found)
        measurements = [
            Measurement(system=system, load=load, **_median(found))
            for (system, load), found in rounds.items()
        ]
        outcome = Outcome(
            precision=pair.precision,
            others_load=loads,
            settings=pair.settings,
            measurements=measurements,
            steady={},
            soak=_NO_SOAK,
        )
        peak = outcome.best("ensemble grpc").items_per_s
        with meters["ensemble"].awake():
            steady = _measure_steadily(
                server.grpc_url, items, rate_per_s=SHARE_OF_PEAK * peak, duration_s=plan.steady_s
            )
            return dataclasses.replace(outcome, steady=steady, soak=soak(server, items, plan.soak_s))


def _measure_steadily(url: str, items: Path, *, rate_per_s: float, duration_s: float) -> dict[str, float]:
    """Latencies of calls that arrive at random moments, as many a second as given."""
    traffic = Traffic(url=url, items=items, calls_per_s=rate_per_s, duration_s=duration_s)
    recording = send_from_another_process(traffic)
    if recording.num_errors:
        raise UserError(f"{url}: {recording.num_errors} of the benchmark's requests failed")
    found = [call.latency_ms for call in recording.calls if call.start_s > recording.begin_s]
    p50, p99 = np.percentile(found, [50, 99]).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "num_items": len(found)}


_NO_SOAK = Soak(seconds=[], num_items=[], memory_mib=[], r_squared=0.0, growth_mib=0.0)


def _in_process(
    what: str, source: Path, items: Path, duration_s: float, size: int, device: str
) -> dict[str, float]:
    """The article's path in one process on all cores; the ceiling in one process a core, or one for a GPU."""
    num_processes = num_cores() if what == "ceiling" and device == "cpu" else 1
    found = run_in_processes(
        what,
        source,
        items,
        duration_s=duration_s,
        batch_size=size,
        num_processes=num_processes,
        device=device,
    )
    fields = dataclasses.asdict(found)
    return {"server_cpu_ms": fields.pop("cpu_ms"), "client_cpu_ms": 0.0, **fields}


def _loaded(
    meter: Meter, url: str, items: Path, concurrency: int, duration_s: float, caller: str
) -> dict[str, float]:
    """One load from its own process, with what the server spent on it."""
    cpu_s = meter.cpu_s()
    load = measure_load(url, items, concurrency=concurrency, duration_s=duration_s, caller=caller)
    cpu_s = meter.cpu_s() - cpu_s
    if load.num_errors:
        raise UserError(f"{url}: {load.num_errors} of the benchmark's requests failed")
    return {
        "items_per_s": load.items_per_s,
        "p50_ms": load.p50_ms,
        "p95_ms": load.p95_ms,
        "p99_ms": load.p99_ms,
        "server_cpu_ms": cpu_s * 1000 / load.num_answered,
        "client_cpu_ms": load.client_cpu_ms,
        "memory_mib": meter.memory_mib(),
    }


def _median(rounds: list[dict[str, float]]) -> dict[str, Any]:
    throughputs = [found["items_per_s"] for found in rounds]
    return {
        **{name: statistics.median(found[name] for found in rounds) for name in rounds[0]},
        "lowest_items_per_s": min(throughputs),
        "highest_items_per_s": max(throughputs),
        "memory_mib": max(found["memory_mib"] for found in rounds),
    }


@contextlib.contextmanager
def _run_peer(app: str, directory: Path, device: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A peer on a free port, until the end of the `with`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", f"bench.peers.{app}_app", str(directory), str(port), device]
    process = children.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process, app)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        Meter(process.pid).end()


def _wait_for(port: int, process: subprocess.Popen[bytes], app: str) -> None:
    deadline = time.monotonic() + PEER_READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise UserError(f"{app}: did not start; try python -m bench.peers.{app}_app REPOSITORY_OR_RUN PORT")
