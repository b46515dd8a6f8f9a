"""Releases under load, from a trained run: a table, a chart, and status 1 if a promise was broken.

    python -m bench.release_show --run runs/quickstart

Exports three versions of the run whose answers differ, serves the first, and lets clients ask without a pause
through an activation, a rollback and three activations that must fail.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.release_show.chart import draw_show
from bench.release_show.show import FIRST, SECOND, Show, run_show
from bench.release_show.versions import export_versions, read_items, version_of
from diptych.runs.run import load_run
from diptych_serving.errors import UserError
from diptych_serving.server.signals import end_in_order

CHART = Path(__file__).parents[1] / "results/release_show.png"


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(
        prog="python -m bench.release_show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="The least duration of the load, in seconds."
    )
    parser.add_argument("--pause-s", type=float, default=2.0, help="Between the commands.")
    parser.add_argument("--chart", type=Path, default=CHART)
    options = parser.parse_args()
    try:
        run = load_run(options.run)
        with tempfile.TemporaryDirectory(prefix="diptych-release-show-") as directory:
            repository = export_versions(run, Path(directory, "model_repository"), num_versions=3)
            show = run_show(
                repository,
                read_items(run),
                num_clients=options.clients,
                at_least_s=options.seconds,
                pause_s=options.pause_s,
            )
    except UserError as error:
        sys.exit(f"error: {error}")
    draw_show(show, options.chart)
    console = Console(width=max(Console().width, 120))
    console.print(tabulate(show))
    console.print(f"{options.chart}\n{sum_up(show, options.clients)}", highlight=False)
    return 0 if show.is_as_promised else 1


def tabulate(show: Show) -> Table:
    """What each command did, and what was answered while it ran."""
    table = Table()
    columns = (
        "command",
        "began at s",
        "took s",
        f"version {FIRST}",
        f"version {SECOND}",
        "no answer",
        "promise",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in ("command", "promise") else "right")
    table.add_column("outcome", overflow="fold", ratio=1)
    for number, event in enumerate(show.events, start=1):
        served = [version_of(call) for call in show.answers if event.start_s <= call.end_s < event.end_s]
        lost = sum(event.start_s <= call.end_s < event.end_s for call in show.failures)
        table.add_row(
            f"{number} {event.name}",
            f"{event.start_s - show.start_s:.1f}",
            f"{event.end_s - event.start_s:.1f}",
            *(str(served.count(version)) for version in (FIRST, SECOND)),
            str(lost),
            "kept" if event.is_as_promised else "BROKEN",
            event.outcome,
        )
    return table


def sum_up(show: Show, num_clients: int) -> str:
    """The promise in one sentence, with its figures."""
    versions = sorted({version_of(call) for call in show.answers})
    return (
        f"{show.end_s - show.start_s:.1f} s of load by {num_clients} clients: {len(show.answers):,} answers, "
        f"{len(show.failures)} errors, {len(show.strays)} answers not of the version they name; "
        f"versions that answered: {', '.join(map(str, versions))}"
        + "".join(f"\n  {_describe(call.result)}" for call in show.failures[:5])
    )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
