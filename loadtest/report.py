"""Reports a run: a table and the verdict on the terminal, JSON, and charts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.objectives import Objectives
from loadtest.outcome import Outcome
from loadtest.plan import STEP
from loadtest.verdict import Verdict

LOG_WIDTH = 120  # columns if stdout is not a terminal

console = Console(soft_wrap=True, highlight=False)
if not console.is_terminal:
    console.width = LOG_WIDTH


def print_report(shape: str, outcomes: Sequence[Outcome], verdict: Verdict) -> None:
    console.print(_make_table(outcomes))
    if verdict.knee:
        console.print(
            f"The knee: {verdict.knee.offered_per_s:.1f} calls/s offered. It is the highest step which, like "
            "every lower one, held p99_ms and error_share."
        )
    for warning in verdict.warnings:
        console.print(f"generator: {warning}", style="yellow", markup=False)
    for breach in verdict.breaches:
        console.print(f"breach: {breach}", style="bold red", markup=False)
    if not verdict.breaches:
        where = "at the knee" if shape == STEP else "in every judged phase"
        console.print(f"All objectives held {where}.", style="green")


def save_summary(
    path: Path, *, run: dict[str, Any], objectives: Objectives, outcomes: Sequence[Outcome], verdict: Verdict
) -> None:
    """`run` holds the run's arguments."""
    summary = {
        "run": run,
        "objectives": dataclasses.asdict(objectives),
        "phases": [_as_json(outcome) for outcome in outcomes],
        "knee": _as_json(verdict.knee) if verdict.knee else None,
        "breaches": verdict.breaches,
        "generator_warnings": verdict.warnings,
    }
    path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", "utf-8")


def _as_json(outcome: Outcome) -> dict[str, Any]:
    """JSON has no NaN: null if no call ended correctly, and for a phase without an end."""
    fields = dataclasses.asdict(outcome)
    phase = fields.pop("phase")
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in {**phase, **fields, "is_generator_limit": outcome.is_generator_limit}.items()
    }


def _make_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("phase", "users")
    for heading in ("offered/s", "answered/s", "errors", "missed", "p50 ms", "p95 ms", "p99 ms", "generator"):
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        table.add_row(
            outcome.phase.name,
            f"{outcome.phase.users}",
            f"{outcome.offered_per_s:.1f}",
            f"{outcome.answered_per_s:.1f}",
            f"{outcome.error_share:.2%}",
            f"{outcome.num_missed}",
            *(f"{value:.3g}" for value in (outcome.p50_ms, outcome.p95_ms, outcome.p99_ms)),
            f"{outcome.generator_cpu:.0%}",
        )
    return table
