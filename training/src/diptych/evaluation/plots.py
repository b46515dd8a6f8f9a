"""Figures of a run. `draw_*` makes a figure; `plot_*` writes it to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from diptych.evaluation.drawn_text import fit
from diptych.evaluation.predict import CONDITION_NAMES
from diptych_serving.chart_style import ACCENT, GREY, INK, PALE, SECOND, THIRD
from diptych_serving.preprocessing import PreprocessingSpec, fit_image

CONDITION_COLOURS = {"both": ACCENT, "image_only": SECOND, "text_only": THIRD}
CONDITION_MARKERS = {"both": "o", "image_only": "s", "text_only": "D"}
# Above this many categories the cells of a confusion matrix are too small for numbers.
MAX_NUMBERED_LABELS = 40
# Above this many categories the bars of a prediction have no room for their names.
MAX_BARS = 20
LABEL_INCHES = 1.9


def open_picture(data: bytes, spec: PreprocessingSpec) -> Image.Image | None:
    """The preprocessed image, for drawing: upright, on white; None if there is no image."""
    return fit_image(data, spec, 512) if data else None


def plot_history(history: Sequence[Mapping[str, Any]], best_epoch: int, path: Path) -> None:
    """Loss, and accuracy with macro-F1, over the epochs; the epoch whose weights were kept is marked."""
    draw_history(history, best_epoch).savefig(path)


def draw_history(history: Sequence[Mapping[str, Any]], best_epoch: int | None) -> Figure:
    """The figure of `plot_history`; a curve that is not in the history is left out."""
    figure = Figure(figsize=(10.4, 3.7), layout="constrained")
    loss, score = figure.subplots(1, 2)
    curves = [
        (loss, "train_loss", "training", GREY),
        (loss, "val_loss", "validation", ACCENT),
        (score, "train_accuracy", "training accuracy", GREY),
        (score, "val_accuracy", "validation accuracy", ACCENT),
        (score, "val_macro_f1", "validation macro-F1", SECOND),
    ]
    for axes, key, label, colour in curves:
        points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
        if points:
            marker = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker)
    loss.set(xlabel="epoch", ylabel="cross-entropy")
    loss.set_title("Loss", loc="left", fontweight="bold")
    score.set(xlabel="epoch")
    score.set_title("Accuracy", loc="left", fontweight="bold")
    for axes in (loss, score):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if best_epoch is not None:
            axes.axvline(
                best_epoch, color=INK, linewidth=0.8, linestyle=":", label=f"kept: epoch {best_epoch}"
            )
        axes.legend(frameon=False)
    return figure


def plot_confusion(matrix: NDArray[np.int64], labels: Sequence[str], path: Path) -> None:
    """Counts in the cells, share of the true category as colour."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    is_numbered = len(labels) <= MAX_NUMBERED_LABELS
    side = 2.6 + 0.55 * min(len(labels), MAX_NUMBERED_LABELS)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if is_numbered:
        for row, column in np.argwhere(matrix):
            colour = "white" if share[row, column] > 0.55 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
        ticks, names = range(len(labels)), [fit(label, LABEL_INCHES) for label in labels]
        axes.set_xticks(ticks, names, rotation=45, ha="right")
        axes.set_yticks(ticks, names)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    figure.savefig(path)


def plot_prediction(
    image: Image.Image | None,
    text: str,
    probabilities: Mapping[str, float],
    path: Path,
    truth: str | None = None,
) -> None:
    """One item beside the probability of each category, the most likely at the top."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    item, bars = figure.subplots(1, 2, width_ratios=[1, 1.25])
    draw_item(item, image, text, 3.3)
    ranked = sorted(probabilities.items(), key=lambda pair: pair[1])[-MAX_BARS:]
    lines = 2 if len(ranked) <= MAX_BARS // 2 else 1
    names, values = (
        [fit(name, LABEL_INCHES, lines=lines) for name, _ in ranked],
        [value for _, value in ranked],
    )
    drawn = bars.barh(range(len(names)), values, color=[PALE] * (len(names) - 1) + [ACCENT])
    bars.set_yticks(range(len(names)), names)
    if hidden := len(probabilities) - len(ranked):
        bars.set_xlabel(f"{hidden} less likely left out", loc="left", color=GREY)
    bars.bar_label(drawn, labels=[f"{value:.1%}" for value in values], padding=4)
    bars.set_xlim(0, 1.15)
    bars.set_xticks([])
    bars.spines[["bottom", "left"]].set_visible(False)
    bars.tick_params(length=0)
    title = f"{ranked[-1][0]}, {values[-1]:.0%}" + (f"  (truth: {truth})" if truth else "")
    bars.set_title(fit(title, 3.3, size=12, lines=3, weight="bold"), fontweight="bold", loc="left")
    figure.savefig(path)


def plot_explanation(
    image: Image.Image | None,
    text: str,
    answers: Mapping[str, Mapping[str, float]],
    verdict: str,
    path: Path,
    num_labels: int = 8,
) -> None:
    """One item beside the answers to both modalities and to each alone.

    answers  condition -> label -> probability
    """
    reach = {label: max(each[label] for each in answers.values()) for label in next(iter(answers.values()))}
    labels = sorted(
        sorted(reach, key=lambda label: -reach[label])[:num_labels], key=lambda label: reach[label]
    )
    figure = Figure(figsize=(10, 4.8), layout=ConstrainedLayoutEngine(h_pad=0.12))
    verdict = fit(verdict, 9.6, size=12, lines=3, weight="bold")
    figure.suptitle(verdict, fontsize=12, fontweight="bold", x=0.02, ha="left")
    item, dots = figure.subplots(1, 2, width_ratios=[1, 1.4])
    draw_item(item, image, text, 2.9)
    rows = np.arange(len(labels))
    values = {name: [answers[name][label] for label in labels] for name in answers}
    lows, highs = (pick(list(values.values()), axis=0) for pick in (np.min, np.max))
    dots.hlines(rows, lows, highs, color=PALE, linewidth=3, zorder=1)
    for name, row in values.items():
        size, depth = (90, 3) if name == "both" else (55, 2)
        colour, marker = CONDITION_COLOURS[name], CONDITION_MARKERS[name]
        dots.scatter(
            row, rows, s=size, marker=marker, color=colour, label=CONDITION_NAMES[name], zorder=depth
        )
    dots.set_yticks(rows, [fit(label, LABEL_INCHES, lines=2) for label in labels])
    dots.set_xlim(-0.03, 1.03)
    dots.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    dots.set_xlabel("probability")
    dots.spines["left"].set_visible(False)
    dots.tick_params(axis="y", length=0)
    dots.grid(axis="x", color=PALE, linewidth=0.6, alpha=0.6)
    dots.set_axisbelow(True)
    dots.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def draw_item(axes: Axes, image: Image.Image | None, text: str, inches: float) -> None:
    """The image below its text, which may be as wide as the image."""
    axes.axis("off")
    if image is None:
        axes.text(0.5, 0.5, "no image", ha="center", va="center", color=GREY)
    else:
        axes.imshow(image)
    words = fit(text, inches, size=11, lines=3)
    axes.set_title(f"“{words}”" if words else "no text", fontsize=11)
