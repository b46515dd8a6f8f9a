"""Draws the report's figures from numbers, and turns figures into inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from diptych.evaluation.drawn_text import fit, without_glyph_warnings
from diptych.evaluation.metrics import Bin, Coverage
from diptych.evaluation.plots import CONDITION_COLOURS
from diptych.evaluation.predict import CONDITION_NAMES
from diptych_serving.chart_style import ACCENT, INK, PALE, SECOND

# A figure of 10.4 inches fills the page's column, one of 5.1 inches half of it, with equal letters.
WIDE_INCHES, HALF_INCHES = 10.4, 5.1
NAME_INCHES = 1.4  # letters of a run's name in a legend of two columns
MAX_POINTS = 500  # points of a curve; more would only make the page larger


def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Inline SVG as wide as its container. `name` makes its ids unique on the page."""
    file = io.StringIO()
    with without_glyph_warnings():
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    head, body = svg[svg.index("<svg") :].split(">", 1)
    view_box = re.search(r'viewBox="([^"]+)"', head)
    assert view_box, head
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    opening = f'<svg viewBox="{view_box[1]}" role="img" aria-label="{Markup.escape(alt)}"'
    return Markup(f"{opening}>{body}")  # matplotlib has escaped the labels


def draw_reliability(before: Sequence[Bin], after: Sequence[Bin], titles: Sequence[str]) -> Figure:
    """Accuracy against confidence, before and after scaling, over the number of items in each bin."""
    figure = Figure(figsize=(WIDE_INCHES, 4.5), layout=ConstrainedLayoutEngine(wspace=0.06))
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[4, 1])
    most = max(each.num_items for each in (*before, *after))
    for column, (bins, title) in enumerate(zip((before, after), titles, strict=True)):
        _draw_bins(axes[0, column], axes[1, column], bins)
        axes[0, column].set_title(title, loc="left", fontweight="bold")
        axes[1, column].set_ylim(0, 1.15 * most)
    axes[0, 0].set_ylabel("share that is right")
    axes[1, 0].set_ylabel("items")
    axes[0, 1].legend(frameon=False, loc="upper left")
    return figure


def _draw_bins(top: Axes, bottom: Axes, bins: Sequence[Bin]) -> None:
    lows, widths = [each.low for each in bins], [each.high - each.low for each in bins]
    accuracy, confidence = (
        np.array([getattr(each, key) for each in bins]) for key in ("accuracy", "confidence")
    )
    style: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 1}
    shared = np.minimum(accuracy, confidence)
    too_low, too_high = accuracy - shared, confidence - shared
    top.bar(lows, shared, widths, color=ACCENT, label="right", **style)
    top.bar(
        lows, too_low, widths, bottom=shared, color=ACCENT, alpha=0.4, label="right, not claimed", **style
    )
    top.bar(
        lows, too_high, widths, bottom=shared, color=SECOND, alpha=0.5, label="claimed, not right", **style
    )
    top.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle="--")
    top.set_ylim(0, 1)
    bottom.bar(lows, [each.num_items for each in bins], widths, color=PALE, **style)
    bottom.set(xlim=(0, 1), xlabel="confidence")
    for axes in (top, bottom):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def draw_coverage(curves: Mapping[str, Coverage]) -> Figure:
    """Accuracy of the given answers against the share of answered items."""
    figure = Figure(figsize=(HALF_INCHES, 3.6), layout="constrained")
    axes = figure.subplots()
    lowest = 1.0
    for name, curve in curves.items():
        first = len(curve.coverage) // 20  # with fewer items the curve is noise
        shown = np.unique(np.linspace(first, len(curve.coverage) - 1, MAX_POINTS).astype(int))
        coverage, accuracy = curve.coverage[shown], curve.accuracy[shown]
        axes.plot(coverage, accuracy, color=CONDITION_COLOURS[name], label=CONDITION_NAMES[name])
        lowest = min(lowest, accuracy.min())
    axes.set(xlim=(0, 1), ylim=(max(0, lowest - 0.05), 1.01))
    axes.set(xlabel="share of items that are answered", ylabel="accuracy among them")
    _percent(axes)
    axes.legend(frameon=False, loc="lower left")
    return figure


def draw_missing(shares: Sequence[float], curves: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Accuracy against the share of items without a modality.

    curves  remaining condition -> (len(shares), num_draws)
    """
    figure = Figure(figsize=(HALF_INCHES, 3.6), layout="constrained")
    axes = figure.subplots()
    lost = {"text_only": "images go missing", "image_only": "texts go missing"}
    for name, accuracy in curves.items():
        mean, spread = accuracy.mean(axis=1), accuracy.std(axis=1)
        colour = CONDITION_COLOURS[name]
        axes.fill_between(shares, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        axes.plot(shares, mean, color=colour, label=lost[name], marker="o", markersize=3.5)
    lowest = min(curve.min() for curve in curves.values())
    highest = max(curve.max() for curve in curves.values())
    axes.set(xlim=(-0.02, 1.02), ylim=(max(0, lowest - 0.08), min(1.02, highest + 0.04)))
    axes.set(xlabel="share that is missing", ylabel="accuracy")
    _percent(axes)
    axes.legend(frameon=False, loc="lower left")
    return figure


def draw_truths(names: tuple[str, str], truths: NDArray[np.float32], is_right: NDArray[np.bool_]) -> Figure:
    """The old and the new side's probability of the truth, item by item.

    truths    (2, N)
    is_right  (2, N)
    """
    old_name, new_name = (fit(name, NAME_INCHES, size=8.5, is_svg=True) for name in names)
    is_right_old, is_right_new = is_right
    figure = Figure(figsize=(HALF_INCHES, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle="--")
    # Changed items are drawn on top.
    kinds = [
        (is_right_old == is_right_new, PALE, "no difference"),
        (is_right_old & ~is_right_new, SECOND, f"right in {old_name} alone"),
        (is_right_new & ~is_right_old, ACCENT, f"right in {new_name} alone"),
    ]
    for which, colour, label in kinds:
        # As one raster image: a browser cannot open a page with a hundred thousand paths.
        old, new = truths[:, which]
        points = axes.scatter(old, new, s=16, color=colour, label=label)
        points.set(edgecolors="white", linewidths=0.4, rasterized=truths.shape[1] > MAX_POINTS)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xlabel=f"probability of the truth, {old_name}", ylabel=f"probability of the truth, {new_name}")
    _percent(axes)
    axes.legend(frameon=False, loc="upper left", fontsize=8.5, bbox_to_anchor=(0, 1.16), ncols=2)
    return figure


def _percent(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(color=PALE, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
