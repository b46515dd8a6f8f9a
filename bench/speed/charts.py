"""Charts of a benchmark: every system side by side, and the soak over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from bench.speed.measure import PEERS, Outcome
from diptych_serving.chart_style import ACCENT, GREY, PALE, SECOND, THIRD

SYSTEMS = ("article", "ceiling", "ensemble grpc", "ensemble http", *PEERS)
PANELS = {
    "items_per_s": "items per second",
    "p50_ms": "latency, ms: p50, p95, p99",
    "server_cpu_ms": "CPU-ms per item: server, client",
    "memory_mib": "peak memory, MiB",
}


def describe_noise(outcome: Outcome) -> str:
    """Behind a title; empty on a quiet machine."""
    if outcome.is_quiet:
        return ""
    return f", NOT QUIET: other processes used up to {max(outcome.others_load):.1f} cores"


def plot_outcomes(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """A row of panels a pair; each system under the load of its highest throughput."""
    figure = Figure(figsize=(14, 3.6 * len(outcomes)), layout="constrained")
    grid = figure.subplots(len(outcomes), len(PANELS), squeeze=False)
    for row, (name, outcome) in zip(grid, outcomes.items(), strict=True):
        best = [outcome.best(system) for system in SYSTEMS]
        colours = [ACCENT if system.startswith("ensemble") else GREY for system in SYSTEMS]
        labels = [f"{found.system}, {found.load}" for found in best]
        for axes, (key, title) in zip(row, PANELS.items(), strict=True):
            values = [getattr(found, key) for found in best]
            if key == "p50_ms":
                for mark, marker in (("p50_ms", "o"), ("p95_ms", "D"), ("p99_ms", "s")):
                    axes.scatter([getattr(found, mark) for found in best], labels, c=colours, marker=marker)
                axes.set_xlim(left=0)
            else:
                axes.barh(labels, values, color=colours)
            if key == "server_cpu_ms":
                axes.barh(labels, [found.client_cpu_ms for found in best], left=values, color=SECOND)
            axes.set_ylim(len(best) - 0.5, -0.5)
            axes.set_xlabel(title)
            axes.grid(axis="x", color=PALE, linewidth=0.6, alpha=0.6)
            axes.set_axisbelow(True)
            if axes is not row[0]:
                axes.set_yticklabels([])
        row[0].set_title(name + describe_noise(outcome), loc="left")
    figure.savefig(path)


def plot_soaks(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Items answered and memory held, over time."""
    figure = Figure(figsize=(10, 3.2 * len(outcomes)), layout="constrained")
    grid = figure.subplots(len(outcomes), 2, squeeze=False)
    for (items, memory), (name, outcome) in zip(grid, outcomes.items(), strict=True):
        items.plot(outcome.soak.seconds, outcome.soak.num_items, color=ACCENT)
        items.set(title=f"{name}: R² {outcome.soak.r_squared:.4f}", xlabel="seconds", ylabel="items answered")
        memory.plot(outcome.soak.num_items, outcome.soak.memory_mib, color=THIRD)
        memory.set(xlabel="items answered", ylabel="server's memory, MiB")
        memory.set_ylim(0, 1.15 * max(outcome.soak.memory_mib))
    figure.savefig(path)
