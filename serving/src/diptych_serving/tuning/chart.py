"""Draws throughput against p99 for every trial of a search, and marks the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from diptych_serving.chart_style import ACCENT, GREY, PALE, SECOND
from diptych_serving.repository.settings import Settings
from diptych_serving.tuning.search import Trial


def plot_trials(trials: Sequence[Trial], chosen: Settings, p99_limit_ms: float, path: Path) -> None:
    """One line for each trial, one dot for each load; the area above the limit is shaded."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for trial in trials:
        is_chosen = trial.settings == chosen
        axes.plot(
            [load.p99_ms for load in trial.loads],
            [load.items_per_s for load in trial.loads],
            marker="o",
            markersize=6 if is_chosen else 3.5,
            color=ACCENT if is_chosen else GREY,
            alpha=1.0 if is_chosen else 0.45,
            linewidth=2.0 if is_chosen else 1.0,
            zorder=3 if is_chosen else 2,
        )
    best = max(
        (trial.best(p99_limit_ms) for trial in trials if trial.settings == chosen),
        key=lambda load: load.items_per_s,
    )
    axes.annotate(
        f"chosen: {best.items_per_s:.0f} items/s, p99 {best.p99_ms:.0f} ms, {best.concurrency} callers",
        (best.p99_ms, best.items_per_s),
        xytext=(0.03, 0.96),
        textcoords="axes fraction",
        color=ACCENT,
        va="top",
        arrowprops={"arrowstyle": "->", "color": ACCENT, "shrinkB": 6},
    )
    loads = [load for trial in trials for load in trial.loads]
    right = 1.3 * max(p99_limit_ms, *(load.p99_ms for load in loads))
    axes.set_xlim(0, right)
    axes.set_ylim(0, 1.25 * max(load.items_per_s for load in loads))
    axes.axvspan(p99_limit_ms, right, color=PALE, alpha=0.35, zorder=0)
    axes.axvline(p99_limit_ms, color=SECOND, linewidth=1, label=f"limit: {p99_limit_ms:g} ms")
    axes.set(xlabel="p99, milliseconds", ylabel="items per second")
    axes.grid(color=PALE, linewidth=0.6, alpha=0.6)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)
