"""Charts of a run: latency against offered load, with the knee; and both over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from loadtest.objectives import Objectives
from loadtest.outcome import Outcome, percentile
from loadtest.plan import Phase
from loadtest.timeline import Second

PERCENTILES = {"p50": "#2b6cb0", "p95": "#dd6b20", "p99": "#c53030"}
INK, GREY, PALE = "#1f2933", "#7b8794", "#e4e7eb"


def draw_latency_against_load(
    outcomes: Sequence[Outcome], knee: Outcome | None, objectives: Objectives, path: Path
) -> None:
    """Latency (top) and answered calls (bottom) against offered calls."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    latency, answered = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    offered = [outcome.offered_per_s for outcome in outcomes]
    for name, colour in PERCENTILES.items():
        values = [getattr(outcome, f"{name}_ms") for outcome in outcomes]
        latency.plot(offered, values, marker="o", color=colour, label=name)
    _dress_latency(latency, objectives)
    answered.plot(offered, offered, color=PALE, label="all that is offered")
    answered.plot(offered, [one.answered_per_s for one in outcomes], marker="o", color=INK, label="answered")
    answered.set_ylabel("calls/s")
    answered.set_xlabel("offered load, calls/s")
    for outcome in outcomes:
        if outcome.is_generator_limit:
            label = "generator at its limit" if outcome is _first_limited(outcomes) else None
            latency.plot(outcome.offered_per_s, outcome.p99_ms, "x", color=INK, markersize=12, label=label)
    title = "No load was sustained"
    if knee:
        title = f"The knee: {knee.offered_per_s:.1f} calls/s, p99 {knee.p99_ms:.0f} ms"
        for axes in (latency, answered):
            axes.axvline(knee.offered_per_s, color=INK, linestyle=":", linewidth=1)
    latency.set_title(title, loc="left")
    _finish(figure, path)


def draw_over_time(
    plan: Sequence[Phase], seconds: Sequence[Second], objectives: Objectives, path: Path
) -> None:
    """`seconds` start with the plan. Latency is that of the calls planned for the second."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    latency, calls = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    times = range(len(seconds))
    for name, colour in PERCENTILES.items():
        share = int(name[1:]) / 100
        latency.plot(times, [percentile(second, share) for second in seconds], color=colour, label=name)
    _dress_latency(latency, objectives)
    calls.plot(times, [second.offered for second in seconds], color=GREY, label="offered")
    calls.plot(times, [second.ended_well for second in seconds], color=INK, label="answered")
    errors = [second.failed + second.missed for second in seconds]
    calls.plot(times, errors, color=PERCENTILES["p99"], label="failed or missed")
    calls.set_ylabel("calls/s")
    calls.set_xlabel("seconds since the start")
    start_s = 0.0
    for phase in plan:
        if start_s < len(seconds):
            for axes in (latency, calls):
                axes.axvline(start_s, color=PALE, linewidth=1, zorder=0)
            top = latency.get_xaxis_transform()
            latency.text(start_s, 1, phase.name, transform=top, fontsize=8, color=GREY, va="bottom")
        start_s += phase.duration_s
    _finish(figure, path)


def _first_limited(outcomes: Sequence[Outcome]) -> Outcome | None:
    return next((outcome for outcome in outcomes if outcome.is_generator_limit), None)


def _dress_latency(axes: Axes, objectives: Objectives) -> None:
    label = f"objective: p99 within {objectives.p99_ms:g} ms"
    axes.axhline(objectives.p99_ms, color=GREY, linestyle="--", label=label)
    axes.set_ylabel("latency, ms")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.grid(axis="y", color=PALE, linewidth=0.5)


def _finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
