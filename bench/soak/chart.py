"""Draws a soak: results of the calls and all gauges over time, with the faults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.soak.gauges import Sample
from bench.soak.ledger import ANSWERED, FAILED, REFUSED, UNTYPED, WRONG
from diptych_serving.chart_style import ACCENT, GREY, INK, PALE, SECOND, THIRD

KIND_COLOURS = {ANSWERED: ACCENT, REFUSED: THIRD, FAILED: SECOND, WRONG: "#c53030", UNTYPED: "#805ad5"}
BIN_S = 5.0
PANELS = (
    ("memory, MiB", "memory_mib", "caller_memory_mib"),
    ("file descriptors", "file_descriptors", "caller_file_descriptors"),
    ("threads", "threads", "caller_threads"),
    ("processes", "processes", None),
    ("shared memory, MiB", "shared_memory_mib", None),
)


def plot_soak(
    samples: Sequence[Sample],
    events: Sequence[tuple[float, str]],
    faults: Sequence[tuple[float, str]],
    steady_from_s: float,
    path: Path,
) -> None:
    """events  (second, kind) of each call's end
    faults  (second, name) of each injection
    """
    figure = Figure(figsize=(12, 15), layout="constrained")
    calls, *rest = figure.subplots(1 + len(PANELS), 1, sharex=True, height_ratios=[2.6] + [1] * len(PANELS))
    _draw_calls(calls, events)
    seconds = [sample.seconds for sample in samples]
    for axes, (title, gauge, of_callers) in zip(rest, PANELS, strict=True):
        axes.plot(seconds, [getattr(sample, gauge) for sample in samples], color=ACCENT, label="server")
        if of_callers:
            values = [getattr(sample, of_callers) for sample in samples]
            axes.plot(seconds, values, color=GREY, label="callers")
            axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_ylim(bottom=0)
        axes.axvspan(steady_from_s, max(seconds), color=PALE, alpha=0.25)
    for axes in (calls, *rest):
        for second, _ in faults:
            axes.axvline(second, color=INK, linewidth=0.7, linestyle=":")
    for second, name in faults:
        calls.annotate(
            name,
            (second, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, -3),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=7.5,
        )
    rest[-1].set_xlabel(
        "seconds; grey: growth is judged here: one server, which has had each of the gentle faults before"
    )
    figure.savefig(path)


def _draw_calls(axes: Axes, events: Sequence[tuple[float, str]]) -> None:
    end_s = max(second for second, _ in events)
    edges = np.arange(0, end_s + BIN_S, BIN_S)
    bottom = np.zeros(len(edges) - 1)
    for kind, colour in KIND_COLOURS.items():
        counts, _ = np.histogram([second for second, each in events if each == kind], edges)
        if counts.any():
            rate = counts / BIN_S
            axes.bar(edges[:-1], rate, BIN_S, bottom, align="edge", color=colour, label=kind)
            bottom += rate
    axes.set_ylabel("calls a second")
    axes.set_ylim(top=bottom.max() * 1.5)
    axes.set_title("What became of the calls", loc="left", fontweight="bold", pad=22)
    axes.legend(frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
