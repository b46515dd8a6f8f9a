"""Puts an evaluation on one page: RUN/report.html, with everything it needs inside it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diptych.evaluation.report import sections
from diptych.evaluation.report.evaluation import Evaluation
from diptych.evaluation.report.mistakes import find_mistakes
from diptych.evaluation.report.templates import render
from diptych.runs.run import CONFIG_FILE, read_metrics

REPORT_FILE = "report.html"


def write_report(evaluation: Evaluation, scores: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the page.

    scores  of the test split by condition, as they go into RUN/metrics.json
    """
    run = evaluation.run
    saved = read_metrics(run.directory)
    page = render(
        "report.html.jinja",
        run=run,
        date=datetime.date.today().isoformat(),
        versions={name: version(name) for name in ("diptych", "torch")},
        num_parameters=sum(tensor.numel() for tensor in run.model.parameters()),
        config=(run.directory / CONFIG_FILE).read_text("utf-8"),
        cost=sections.describe_cost(saved.get("train", {})),
        curves=sections.draw_curves(run, saved),
        **sections.describe_scores(evaluation, scores),
        **sections.describe_categories(evaluation),
        **sections.describe_confidence(evaluation),
        missing=sections.describe_missing(evaluation),
        mistakes=find_mistakes(
            evaluation.items, evaluation.truth, evaluation.answers, run.labels, run.preprocessor.spec
        ),
    )
    path.write_text(page, "utf-8")
