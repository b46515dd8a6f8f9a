"""One figure for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from bench.scale.autoscaler import QUEUE, Rule
from bench.scale.check import Row
from bench.scale.questions import Load, Story
from diptych_serving.chart_style import ACCENT, GREY, PALE, SECOND, THIRD
from loadtest.objectives import Objectives

COLOURS = (GREY, ACCENT, SECOND, THIRD)


def plot_check(rows: Sequence[Row], path: Path) -> None:
    """Measured against simulated, p50 and p99, a panel for each number of servers."""
    numbers = sorted({row.num_servers for row in rows})
    figure = Figure(figsize=(5 * len(numbers), 3.6), layout="constrained")
    for axes, number in zip(
        np.atleast_1d(figure.subplots(1, len(numbers), sharey=True)), numbers, strict=True
    ):
        ours = [row for row in rows if row.num_servers == number]
        rates = [row.rate_per_s for row in ours]
        low, high = zip(*(row.simulated_p99_range_ms for row in ours), strict=True)
        axes.fill_between(rates, low, high, color=PALE, alpha=0.6, label="simulated p99, 90 of 100 runs")
        axes.plot(rates, [row.simulated_p99_ms for row in ours], color=GREY, label="simulated p99")
        axes.plot(
            rates, [row.simulated_p50_ms for row in ours], color=GREY, linestyle=":", label="simulated p50"
        )
        axes.plot(rates, [row.measured_p99_ms for row in ours], "s", color=SECOND, label="measured p99")
        axes.plot(rates, [row.measured_p50_ms for row in ours], "o", color=ACCENT, label="measured p50")
        axes.set(
            title=f"{number} server{'s' * (number > 1)}, one core each", xlabel="calls/s", ylim=(0, None)
        )
        axes.grid(color=PALE, linewidth=0.6, alpha=0.6)
    figure.axes[0].set_ylabel("latency, ms")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path)


def plot_loads(loads: Sequence[Load], rules: Mapping[str, Rule], objectives: Objectives, path: Path) -> None:
    """What callers of one pod see, and how many pods each rule asks for in its place, against its load."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    latency, asked = figure.subplots(1, 2)
    rates = [load.rate_per_s for load in loads]
    latency.plot(rates, [load.found.p99_ms for load in loads], color=SECOND, marker="s", label="p99")
    latency.plot(rates, [load.found.p50_ms for load in loads], color=ACCENT, marker="o", label="p50")
    latency.axhline(objectives.p99_ms, color=SECOND, linestyle="--", linewidth=1, label="objective for p99")
    latency.set(title="Latency of answered calls", ylabel="ms")
    _use_log(latency)
    latency.legend(frameon=False)
    triggers = {trigger for rule in rules.values() for trigger in rule.triggers}
    for trigger, colour in zip(sorted(triggers, key=lambda each: each.series), COLOURS[1:], strict=False):
        values = [load.queue_us if trigger.series == QUEUE else load.rate_per_s for load in loads]
        name = f"{trigger.series}, threshold {trigger.threshold:g}"
        asked.plot(
            rates, [value / trigger.threshold for value in values], color=colour, marker="o", label=name
        )
    asked.axhline(1, color=GREY, linestyle="--", linewidth=1)
    asked.set(title="Pods that each trigger asks for", ylabel="for each pod that is there")
    _use_log(asked)
    asked.legend(frameon=False, fontsize=8, loc="upper left")
    for axes in (latency, asked):
        axes.set_xlabel("calls/s, one pod")
        axes.grid(color=PALE, linewidth=0.6, alpha=0.6)
    figure.savefig(path)


def plot_stories(stories: Sequence[Story], objectives: Objectives, path: Path) -> None:
    """One event under each rule: p99, failed calls and pods over time."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    latency, errors, pods = figure.subplots(3, 1, sharex=True)
    for story, colour in zip(stories, COLOURS, strict=False):
        minutes = [at_s / 60 for at_s, _ in story.spans]
        latency.plot(minutes, [found.p99_ms for _, found in story.spans], color=colour, label=story.rule)
        errors.plot(minutes, [100 * found.error_share for _, found in story.spans], color=colour)
        pods.step(
            [count[0] / 60 for count in story.counts],
            [count[1] for count in story.counts],
            color=colour,
            where="post",
        )
    latency.axhline(objectives.p99_ms, color=SECOND, linestyle="--", linewidth=1)
    latency.set(title=f"{stories[0].event}", ylabel="p99 in 15 s, ms")
    _use_log(latency)
    latency.legend(frameon=False, ncols=3, fontsize=8, loc="upper right")
    errors.set(ylabel="calls that failed, %", ylim=(0, None))
    pods.set(ylabel="pods that are ready", xlabel="minutes", ylim=(0, None))
    for axes in (latency, errors, pods):
        axes.grid(color=PALE, linewidth=0.6, alpha=0.6)
    figure.savefig(path)


def _use_log(axes: Axes) -> None:
    """A logarithmic axis with plain numbers, and room for the legend above the curves."""
    high = axes.get_ylim()[1]
    axes.set_yscale("log")
    axes.set_ylim(top=3 * high)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
