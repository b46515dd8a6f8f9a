"""`diptych compare`, `ablate` and `doubt`: studies over several models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from diptych.cli.options import (
    ConfigArgument,
    Overrides,
)
from diptych.cli.outputs import check_directory, check_file

app = typer.Typer()


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The run to compare with.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The run that may replace it.")],
    catalogue: Annotated[
        Optional[Path],
        typer.Option(metavar="TABLE", help="Items, with or without categories. [RUN_A's test set]"),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="HTML", callback=check_file, help="The HTML page to write.")
    ] = Path("comparison.html"),
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out bad rows, and list them.")
    ] = False,
) -> None:
    """Compare two runs on the same items: which is right more often, and a page of their disagreements."""
    from diptych.analysis.comparison.asking import compare_runs
    from diptych.analysis.comparison.page import write_comparison
    from diptych.analysis.comparison.result import summarize
    from diptych.runs.run import load_run

    old, new = load_run(run_a), load_run(run_b)
    comparison = compare_runs(old, new, catalogue, skip_bad_rows=skip_bad_rows)
    title = f"{comparison.old.name} and {comparison.new.name}"
    notes = {"old": str(run_a), "new": str(run_b), "items": str(comparison.items[0].table)}
    write_comparison(comparison, out, old.preprocessor.spec, title=title, notes=notes)
    typer.echo(f"{summarize(comparison)}\nAll disagreements: {out}")


@app.command()
def ablate(
    config: ConfigArgument,
    out: Annotated[
        Path, typer.Option(callback=check_directory, help="The directory for the variants' runs.")
    ],
    seeds: Annotated[int, typer.Option(help="Seeds for each variant.", min=1)] = 3,
    beside: Annotated[
        Optional[list[Path]], typer.Option(help="Other configs on the same data, one row each; repeatable.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measure what each part is worth: fusions, balancing, each modality alone, simple baselines."""
    from rich.console import Console

    from diptych.analysis.ablation import PICTURE_FILE, ablate, measure_baselines, variants
    from diptych.analysis.ablation_report import balance_table, plot_ablation, score_table
    from diptych.config.loader import load_config
    from diptych.runs.run import load_run

    loaded = load_config(config, overrides or [])
    others = {path.stem: load_config(path) for path in beside or []}
    results = ablate({**variants(loaded), **others}, out, range(seeds))
    baselines = measure_baselines(load_run(out / f"{loaded.fusion.kind}-0"))
    plot_ablation(results, baselines, out / PICTURE_FILE)
    wide = Console(width=max(Console().width, 110))
    wide.print(score_table(results, baselines), balance_table(results, own=loaded.fusion.kind))
    typer.echo(f"Drawn in {out}/{PICTURE_FILE}; each variant's report is in its run.")


@app.command()
def doubt(
    config: ConfigArgument,
    out: Annotated[
        Path, typer.Option(callback=check_directory, help="The directory for the list and the figure.")
    ] = Path("doubtful"),
    top: Annotated[int, typer.Option(help="Number of items to draw.", min=1)] = 20,
    overrides: Overrides = None,
) -> None:
    """List and draw the items whose labels are most likely wrong."""
    from diptych.analysis.doubtful import find_suspects, plot_suspects, write_suspects
    from diptych.config.loader import load_config

    loaded = load_config(config, overrides or [])
    suspects = find_suspects(loaded)
    out.mkdir(parents=True, exist_ok=True)
    write_suspects(suspects, out / "doubtful.csv")
    plot_suspects(suspects[:top], loaded.spec, out / "doubtful.png")
    for suspect in suspects[:top]:
        typer.echo(f"{suspect.item.category:<15} → {suspect.suggested:<15} {suspect.item.place}")
    typer.echo(
        f"{len(suspects)} doubtful labels in {out}/doubtful.csv; the worst {top} in {out}/doubtful.png"
    )
