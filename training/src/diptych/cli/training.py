"""`diptych train` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from diptych.cli.options import (
    ConfigArgument,
    DataOverrides,
    Overrides,
    RunArgument,
)
from diptych.cli.outputs import check_file
from diptych_serving.errors import UserError

app = typer.Typer()


@app.command()
def train(
    config: ConfigArgument,
    out: Annotated[
        Optional[Path], typer.Option(help="The run directory to write. Needed, except with --dry-run.")
    ] = None,
    overrides: Overrides = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out bad rows, and list them.")
    ] = False,
    folds: Annotated[
        Optional[int],
        typer.Option(
            help="Cross-validate: train this number of models, each without a part of the items, and report "
            "their answers to that part. With frozen backbones, "
            "OUT/averaged is a run with the mean of their weights.",
            min=2,
        ),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Take ten steps and say what training will cost. Writes no run."),
    ] = False,
) -> None:
    """Train a classifier, and evaluate it if the config names a test set."""
    from diptych.analysis.cross_validation import AVERAGED, cross_validate
    from diptych.analysis.cross_validation_table import describe
    from diptych.config.loader import load_config
    from diptych.evaluation.evaluate import evaluate
    from diptych.train.parallel import is_main_process
    from diptych.train.train import train

    skip = ["data.skip_bad_rows=true"] if skip_bad_rows else []
    loaded = load_config(config, [*(overrides or []), *skip])
    if dry:
        from diptych.train.dry_run import dry_run

        typer.echo(dry_run(loaded))
        return
    if out is None:
        raise UserError("--out is missing: name the run directory to write")
    if folds:
        results = cross_validate(loaded, out, folds)
        if is_main_process():
            typer.echo(describe(results))
            if loaded.train.freeze_backbones:
                typer.echo(f"{out / AVERAGED}: one run, the mean of the folds' weights")
        return
    run = train(loaded, out)
    if not is_main_process():
        return
    if run.config.data.test_csv:
        evaluate(run)
    _print_scores(run.directory)


@app.command()
def evaluate(run: RunArgument, overrides: DataOverrides = None) -> None:
    """Evaluate a run on its test set: both modalities, each alone, every category."""
    from diptych.evaluation.evaluate import evaluate
    from diptych.runs.run import load_run

    typer.echo(evaluate(load_run(run, overrides or [])))
    _print_scores(run)


@app.command()
def zeroshot(
    config: ConfigArgument,
    out: Annotated[
        Optional[Path], typer.Option(metavar="JSON", callback=check_file, help="Write the scores there too.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Score the label names of a config with [pair], without training: a baseline."""
    from diptych.analysis.zeroshot import score_label_names
    from diptych.config.loader import load_config
    from diptych.files import write_json

    loaded = load_config(config, overrides or [])
    scores = score_label_names(loaded)
    if out:
        write_json(out, scores)
    _print_conditions("test" if loaded.data.test_csv else "val", scores)


def _print_scores(run: Path) -> None:
    from diptych.runs.run import read_metrics

    metrics = read_metrics(run)
    split = "test" if "test" in metrics else "val"
    _print_conditions(split, metrics[split])


def _print_conditions(split: str, conditions: dict[str, dict[str, Any]]) -> None:
    typer.echo(f"{split:<12}{'accuracy':>10}{'macro-F1':>10}{'ECE':>8}{'items':>7}")
    for condition, scores in conditions.items():
        typer.echo(
            f"{condition:<12}{scores['accuracy']:>10.3f}{scores['macro_f1']:>10.3f}"
            f"{scores['ece']:>8.3f}{scores['num_items']:>7}"
        )
