"""How many pods a load needs, and what happens to them: a simulation with costs that are measured here.

    python -m bench.scale --calibrate    measure what an item costs each step (a minute), then simulate
    python -m bench.scale                simulate with the costs of the last measurement (ten minutes)
    python -m bench.scale --check        hold the simulation against one and two real servers (ten minutes)
    python -m bench.scale --quick        a little of everything; the figures mean nothing

It needs an exported repository and the demo's data: make demo.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

from bench.scale import questions
from bench.scale.autoscaler import load_rule
from bench.scale.calibrate import calibrate
from bench.scale.charts import plot_check, plot_loads, plot_stories
from bench.scale.check import Row, check
from bench.scale.cluster import load_times
from bench.scale.costs import cpu_ms_of_bench, load_costs, read_plans, save_costs
from bench.scale.fleet import Shape, run_steadily
from bench.scale.limits import Assumptions, limits, price_of_million
from diptych_client import Retries
from diptych_serving.errors import UserError
from diptych_serving.hardware import num_cores
from diptych_serving.progress import console, track, wait_for
from diptych_serving.repository.settings import Settings
from diptych_serving.server.signals import end_in_order
from loadtest.objectives import load_objectives

RESULTS = Path("bench/results/scale")
KUBERNETES = Path("docker/kubernetes")
# docs/cost.md's example.
CORE_HOUR = 0.04

out = Console(width=max(Console().width, 120), highlight=False)


def main() -> int:
    end_in_order()
    matplotlib.use("Agg")
    options = _parse()
    options.results.mkdir(parents=True, exist_ok=True)
    costs_file = options.results / "costs.json"
    try:
        if options.calibrate or (options.quick and not costs_file.is_file()):
            num_items, num_rounds = (8, 1) if options.quick else (48, 3)
            save_costs(
                calibrate(options.repository, options.catalogue, num_items=num_items, num_rounds=num_rounds),
                costs_file,
            )
        if options.check:
            _check(options, costs_file)
        else:
            _answer(options, costs_file)
    except UserError as error:
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("build/model_repository"))
    parser.add_argument(
        "--catalogue", type=Path, default=Path("data/openclipart/test.csv"), help="items to ask about"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="costs.json, tables as JSON, charts")
    parser.add_argument(
        "--bench", type=Path, help="bench.json of `make bench`: its CPU time an item replaces ours"
    )
    parser.add_argument(
        "--rule", type=Path, action="append", help="one more ScaledObject to compare; may be repeated"
    )
    parser.add_argument("--cores", type=int, default=4, help="of a pod, as overlays/cpu limits it")
    parser.add_argument(
        "--start-s", type=float, default=60.0, help="from a pod's creation to its first answer"
    )
    parser.add_argument("--cpu-ms", type=float, help="CPU time an item in batches of four, in place of ours")
    parser.add_argument("--rates", help="calls/s, separated by commas: one pod under each, without retries")
    parser.add_argument("--core-hour", type=float, default=CORE_HOUR, help="price of a core for an hour")
    parser.add_argument("--slo", type=Path, default=Path("loadtest/slo.toml"))
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def _check(options: argparse.Namespace, costs_file: Path) -> None:
    costs = load_costs(costs_file)
    rows = check(options.repository, options.catalogue, costs, duration_s=4 if options.quick else 40)
    _save(options.results / "check.json", [dataclasses.asdict(row) for row in rows])
    plot_check(rows, options.results / "check.png")
    _print_check(rows)


def _print_check(rows: list[Row]) -> None:
    table = Table(
        "servers",
        "calls/s",
        "p50 ms, measured",
        "simulated",
        "p99 ms, measured",
        "simulated (90 of 100 runs)",
        "CPU-ms an item",
        "failed",
        "cores used by others",
    )
    for row in rows:
        low, high = row.simulated_p99_range_ms
        table.add_row(
            str(row.num_servers),
            f"{row.rate_per_s:.1f}",
            f"{row.measured_p50_ms:.0f}",
            f"{row.simulated_p50_ms:.0f}",
            f"{row.measured_p99_ms:.0f}",
            f"{row.simulated_p99_ms:.0f} ({low:.0f} to {high:.0f})",
            f"{row.cpu_ms:.1f}",
            str(row.num_failed),
            f"{row.others_cores:.2f}",
        )
    out.print(table)
    out.print(f"load average at the end: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


def _answer(options: argparse.Namespace, costs_file: Path) -> None:
    costs = load_costs(costs_file)
    if options.bench or options.cpu_ms:
        costs = costs.scaled(options.cpu_ms or cpu_ms_of_bench(options.bench))
    objectives = load_objectives(options.slo)
    plans = read_plans(options.repository, Settings.for_cores(options.cores))
    shape = Shape(costs=costs, plans=plans, num_cores=options.cores)
    out.print(
        f"{costs.cpu_ms():.1f} CPU-ms an item, {costs.cpu_ms(4):.1f} in batches of four; {costs.measured}; "
        f"pods of {options.cores} cores; p99 of {objectives.p99_ms:g} ms"
    )
    if options.rates:
        _print_rates(shape, [float(rate) for rate in options.rates.split(",")], objectives.p99_ms)
        return
    scaled_object = KUBERNETES / "components/autoscaling/scaled-object.yaml"
    rules = {
        "queue time": load_rule(scaled_object),
        "requests": load_rule(scaled_object, KUBERNETES / "overlays/cpu/scale-on-requests.yaml"),
    }
    rules |= {path.stem: load_rule(path) for path in options.rule or ()}
    loads = questions.climb(shape, objectives, duration_s=20 if options.quick else 45)
    knee_per_s = questions.knee(loads, objectives)
    _print_loads(loads)
    rows = [questions.replicas(rate, knee_per_s) for rate in questions.RATES_PER_S]
    _print_replicas(rows, options)
    for limit in limits(costs, knee_per_s, options.cores, Assumptions()):
        calls_per_s = limit.at_pods * knee_per_s
        out.print(f"  {limit.at_pods:>9,.0f} pods, {calls_per_s:>11,.0f} calls/s: {limit.what}")
        out.print(f"             {limit.figure}; {limit.source}")
    times = load_times(KUBERNETES / "base/deployment.yaml", options.start_s)
    events = questions.EVENTS
    if options.quick:
        events = tuple(dataclasses.replace(event, duration_s=90, base_per_s=20) for event in events)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_cores(), spawn) as pool:
        told = [
            pool.submit(questions.tell, event, name, rule, shape, times, objectives)
            for event in events
            for name, rule in rules.items()
        ]
        stories = wait_for(told, "simulating events")
    for event in events:
        ours = [story for story in stories if story.event == event.name]
        plot_stories(ours, objectives, options.results / f"{event.name.replace(' ', '_')}.png")
    _print_stories(stories)
    plot_loads(loads, rules, objectives, options.results / "loads.png")
    _save(
        options.results / "answers.json",
        {
            "cpu_ms": costs.cpu_ms(),
            "knee_per_s": knee_per_s,
            "loads": [dataclasses.asdict(load) for load in loads],
            "replicas": [dataclasses.asdict(row) for row in rows],
            "stories": [
                {k: v for k, v in dataclasses.asdict(story).items() if k not in ("spans", "counts")}
                for story in stories
            ],
        },
    )


def _print_loads(loads: list[questions.Load]) -> None:
    table = Table("calls/s, one pod", "cores busy", "p50 ms", "p99 ms", "failed", "queue of a step, us")
    for load in loads:
        table.add_row(
            f"{load.rate_per_s:.0f}",
            f"{load.busy_share:.0%}",
            f"{load.found.p50_ms:.0f}",
            f"{load.found.p99_ms:.0f}",
            f"{load.found.error_share:.2%}",
            f"{load.queue_us:,.0f}",
        )
    out.print(table)


def _print_rates(shape: Shape, rates_per_s: list[float], p99_ms: float) -> None:
    table = Table("calls/s", "p50 ms", "p99 ms", "failed")
    shape = dataclasses.replace(shape, num_callers=1, timeout_s=30.0, retries=Retries(max_attempts=1))
    for rate_per_s in track(rates_per_s, "simulating loads", len(rates_per_s)):
        found = run_steadily(shape, num_pods=1, rate_per_s=rate_per_s, duration_s=60, p99_ms=p99_ms)
        cells = f"{rate_per_s:g}", f"{found.p50_ms:.0f}", f"{found.p99_ms:.0f}", f"{found.error_share:.0%}"
        table.add_row(*cells)
    out.print(table)


def _print_replicas(rows: list[questions.Replicas], options: argparse.Namespace) -> None:
    table = Table(
        "calls/s",
        "pods that hold the objectives",
        "with a zone lost",
        f"a million items at {options.core_hour:g} a core-hour",
    )
    for row in rows:
        price = price_of_million(row.num_kept, options.cores, row.rate_per_s, options.core_hour)
        table.add_row(f"{row.rate_per_s:,}", f"{row.num_needed:,}", f"{row.num_kept:,}", f"{price:.2f}")
    out.print(table)


def _print_stories(stories: list[questions.Story]) -> None:
    table = Table(
        "event",
        "rule",
        "p99 ms",
        "failed",
        "failed or slow",
        "seconds missed",
        "back after s",
        "pod-hours",
        "most pods",
    )
    for story in stories:
        table.add_row(
            story.event,
            story.rule,
            f"{story.found.p99_ms:.0f}",
            f"{story.found.error_share:.2%}",
            f"{story.found.slow_share:.2%}",
            f"{story.broken_s:.0f}",
            f"{story.back_after_s:.0f}",
            f"{story.pod_hours:.2f}",
            str(story.most_pods),
        )
    out.print(table)


def _save(path: Path, found: object) -> None:
    path.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
