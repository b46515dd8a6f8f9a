"""Pictures of a run. Each function draws one figure and writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from diptych.preprocessing import PreprocessingSpec, decode_image, fit_on_white

INK, PALE, ACCENT, SECOND = "#1f2933", "#cbd2d9", "#2b6cb0", "#dd6b20"

matplotlib.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": PALE,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "savefig.dpi": 130,
    }
)


def open_picture(data: bytes, spec: PreprocessingSpec) -> Image.Image | None:
    """What the model is shown, for drawing: upright, on white; None where there is no image."""
    return fit_on_white(decode_image(data, spec), 512) if data else None


def plot_history(history: Sequence[Mapping[str, Any]], best_epoch: int, path: Path) -> None:
    """Loss, and accuracy with macro-F1, over the epochs; the epoch whose weights were kept is marked."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, score = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    loss.plot(epochs, [row["train_loss"] for row in history], color=PALE, label="training")
    loss.plot(epochs, [row["val_loss"] for row in history], color=ACCENT, label="validation")
    loss.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
    score.plot(epochs, [row["train_accuracy"] for row in history], color=PALE, label="training accuracy")
    score.plot(epochs, [row["val_accuracy"] for row in history], color=ACCENT, label="validation accuracy")
    score.plot(epochs, [row["val_macro_f1"] for row in history], color=SECOND, label="validation macro-F1")
    score.set(xlabel="epoch", title="Accuracy")
    for axes in (loss, score):
        axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=":", label=f"kept: epoch {best_epoch}")
        axes.legend(frameon=False)
    figure.savefig(path)


def plot_confusion(matrix: NDArray[np.int64], labels: Sequence[str], path: Path) -> None:
    """Counts in the cells, share of the true category as colour."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.55 * len(labels)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*matrix.shape):
        if matrix[row, column]:
            colour = "white" if share[row, column] > 0.55 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_yticks(ticks, labels)
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
    """One item beside the probability of every category, the most likely on top."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    picture, bars = figure.subplots(1, 2, width_ratios=[1, 1.25])
    picture.axis("off")
    if image is None:
        picture.text(0.5, 0.5, "no picture", ha="center", va="center", color="#7b8794")
    else:
        picture.imshow(image)
    words = text if len(text) <= 90 else text[:89].rsplit(" ", 1)[0] + " …"
    picture.set_title(f"“{words}”" if text else "no words", fontsize=11, wrap=True)
    ranked = sorted(probabilities.items(), key=lambda pair: pair[1])
    names, values = [name for name, _ in ranked], [value for _, value in ranked]
    drawn = bars.barh(names, values, color=[PALE] * (len(names) - 1) + [ACCENT])
    bars.bar_label(drawn, labels=[f"{value:.1%}" for value in values], padding=4)
    bars.set_xlim(0, 1.15)
    bars.set_xticks([])
    bars.spines[["bottom", "left"]].set_visible(False)
    bars.tick_params(length=0)
    title = f"{names[-1]}, {values[-1]:.0%}"
    bars.set_title(title + (f"  (truth: {truth})" if truth else ""), fontweight="bold", loc="left")
    figure.savefig(path)
