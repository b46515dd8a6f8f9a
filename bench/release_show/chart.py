"""Answers per second by version over time, with the release commands marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.release_show.show import FIRST, SECOND, Show
from bench.release_show.versions import version_of

COLOURS = {FIRST: "#2b6cb0", SECOND: "#dd6b20"}
INK, PALE, WRONG = "#1f2933", "#e4e7eb", "#c53030"


def draw_show(show: Show, path: Path) -> None:
    """Stacked, a bar for each half second; a numbered band for each command."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes = figure.subplots()
    duration_s = show.end_s - show.start_s
    edges = np.arange(0, duration_s + 0.5, 0.5)
    floor = np.zeros(len(edges) - 1)
    for version, colour in COLOURS.items():
        at_s = [call.end_s - show.start_s for call in show.answers if version_of(call) == version]
        rates = np.histogram(at_s, edges)[0] / 0.5
        label = f"version {version}: {len(at_s):,} answers"
        axes.bar(edges[:-1], rates, 0.5, bottom=floor, align="edge", color=colour, label=label)
        floor = floor + rates
    lost = [call.end_s - show.start_s for call in show.failures]
    axes.plot(lost, [0] * len(lost), "x", color=WRONG, label=f"calls without an answer: {len(lost)}")
    strays = [call.end_s - show.start_s for call in show.strays]
    axes.plot(strays, [0] * len(strays), "^", color=WRONG, label=f"answers of neither version: {len(strays)}")
    top = max(1.0, floor.max())
    for number, event in enumerate(show.events, start=1):
        start_s, end_s = event.start_s - show.start_s, event.end_s - show.start_s
        axes.axvspan(start_s, end_s, color=PALE, zorder=0)
        axes.axvline(end_s, color=INK, linewidth=0.9, linestyle=":")
        axes.text((start_s + end_s) / 2, 1.03 * top, str(number), ha="center", fontweight="bold", color=INK)
    names = [f"{number} {event.name}" for number, event in enumerate(show.events, start=1)]
    axes.set(xlim=(0, duration_s), ylim=(0, 1.12 * top), ylabel="answers per second")
    axes.set_xlabel("seconds    (" + ";  ".join(names) + ")", fontsize=8.5)
    axes.set_title(
        "Every command ends at its dotted line; the version that answers changes there and nowhere else",
        loc="left",
    )
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
