"""An ablation as tables and as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.markup import escape
from rich.table import Table

from diptych.analysis.ablation import Results, Trial
from diptych.evaluation.drawn_text import fit
from diptych.evaluation.plots import CONDITION_COLOURS, CONDITION_MARKERS
from diptych.evaluation.predict import CONDITION_NAMES
from diptych_serving.chart_style import PALE

CONDITIONS = tuple(CONDITION_NAMES)
# A model that was trained without a modality answers it with noise.
CONDITIONS_OF = {"picture alone": ("image_only",), "words alone": ("text_only",)}


def score_table(results: Results, baselines: Mapping[str, Mapping[str, Any]]) -> Table:
    """Mean and spread over seeds: accuracy, macro-F1 in brackets."""
    title = "Test accuracy (macro-F1), mean ± standard deviation over seeds"
    table = Table(title=title, title_justify="left")
    for column in ("variant", "both", "image only", "text only"):
        table.add_column(column, no_wrap=True)
    for name, trials in results.items():
        cells = (
            _cell([trial.scores[condition] for trial in trials])
            if condition in _conditions_of(name, trials)
            else ""
            for condition in CONDITIONS
        )
        table.add_row(escape(name), *cells)
    for name, scores in baselines.items():
        table.add_row(escape(name), _cell([scores]), "", "")
    return table


def balance_table(results: Results, own: str) -> Table:
    """F1 of each category for each balancing, the rarest category first; mean over seeds.

    own  name of the unchanged variant
    """
    columns = {own: results[own]} | {name: t for name, t in results.items() if name.startswith("balance ")}
    num_items = results[own][0].num_items
    table = Table(title="F1 by category with both modalities, mean over seeds", title_justify="left")
    table.add_column("category", no_wrap=True)
    table.add_column("test items", justify="right")
    for name in columns:
        table.add_column(escape(name), justify="right")
    for label in sorted(num_items, key=num_items.__getitem__):
        scores = (f"{mean(trial.f1[label] for trial in trials):.3f}" for trials in columns.values())
        table.add_row(escape(label), str(num_items[label]), *scores)
    return table


def plot_ablation(results: Results, baselines: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy of every seed as a dot, and the mean as a bar; both modalities and each alone."""
    figure = Figure(figsize=(9.2, 0.42 * (len(results) + len(baselines)) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [*results, *baselines]
    for row, name in enumerate(names):
        for condition in _conditions_of(name, results[name]) if name in results else CONDITIONS[:1]:
            scores = (
                [trial.scores[condition]["accuracy"] for trial in results[name]]
                if name in results
                else [baselines[name]["accuracy"]]
            )
            colour = CONDITION_COLOURS[condition]
            axes.plot(scores, [row] * len(scores), CONDITION_MARKERS[condition], color=colour, alpha=0.35)
            axes.plot(mean(scores), row, "|", color=colour, markersize=16, markeredgewidth=3)
    for condition in CONDITIONS:
        axes.plot(
            [],
            [],
            CONDITION_MARKERS[condition],
            color=CONDITION_COLOURS[condition],
            label=CONDITION_NAMES[condition],
        )
    axes.set(
        yticks=range(len(names)),
        yticklabels=[fit(name, 2.6) for name in names],
        xlabel="test accuracy; dots are seeds, bars their mean",
    )
    axes.invert_yaxis()
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    figure.savefig(path)


def _conditions_of(name: str, trials: Sequence[Trial]) -> list[str]:
    """The conditions of a variant: those that it was trained on and that the test items have."""
    taught = CONDITIONS_OF.get(name, CONDITIONS)
    return [condition for condition in taught if condition in trials[0].scores]


def _cell(scores: Sequence[Mapping[str, Any]]) -> str:
    accuracy, macro_f1 = ([score[key] for score in scores] for key in ("accuracy", "macro_f1"))
    spread = f" ± {stdev(accuracy):.3f}" if len(accuracy) > 1 else ""
    return f"{mean(accuracy):.3f}{spread} ({mean(macro_f1):.3f})"
