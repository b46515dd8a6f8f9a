"""The command `diptych`: arguments in, work done elsewhere, results and errors out."""

from __future__ import annotations

import errno
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer
from rich.markup import escape

from diptych.cli.outputs import check_directory, check_figure, check_file
from diptych.cli.release import release_app
from diptych_serving.errors import UserError
from diptych_serving.progress import console
from diptych_serving.server import children
from diptych_serving.terminal import accept_all_letters

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Make the catalogues of items that runs are trained on.")
app.add_typer(data_app, name="data")
app.add_typer(release_app, name="release")

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, made by `diptych train`.")]
ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A TOML file, such as those in training/configs/.")
]
Overrides = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value of the config; repeatable."),
]
DataOverrides = Annotated[
    Optional[list[str]],
    typer.Option(
        "--set",
        metavar="data.KEY=VALUE",
        help="Use another table than the run was trained with, such as data.test_csv=FILE; repeatable.",
    ),
]
ImageOption = Annotated[Optional[Path], typer.Option(help="A picture file.")]
TextOption = Annotated[str, typer.Option(help="A few words.")]
PlotOption = Annotated[
    Optional[Path],
    typer.Option(callback=check_figure, help="Draw it into this file: PNG, SVG, PDF, by its ending."),
]

# A full disk, a quota, a directory that others own: not our mistake, so no traceback.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main() -> None:
    """Entry point. What the user can put right is one message and status 1, never a traceback."""
    children.end_in_order()
    accept_all_letters()
    warnings.simplefilter("ignore", FutureWarning)  # libraries about one another; tests see them as errors
    try:
        app()
    except UserError as error:
        _exit_with(str(error))
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        _exit_with(f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}")


def _exit_with(message: str) -> NoReturn:
    console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(1)


@app.command()
def train(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(help="The run directory to write.")],
    overrides: Overrides = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave rows out that cannot be used, and list them.")
    ] = False,
    folds: Annotated[
        Optional[int],
        typer.Option(
            help="Cross-validate instead: train this many models, each without a part of all items, and "
            "report what they say to the part that they have not seen. Where backbones are frozen, "
            "OUT/averaged is one run with the mean of their weights.",
            min=2,
        ),
    ] = None,
) -> None:
    """Train a classifier, then evaluate it where the config names a test set."""
    from diptych.analysis.cross_validation import AVERAGED, cross_validate
    from diptych.analysis.cross_validation_table import describe
    from diptych.config.loader import load_config
    from diptych.evaluation.evaluate import evaluate
    from diptych.train.parallel import is_main_process
    from diptych.train.train import train

    skip = ["data.skip_bad_rows=true"] if skip_bad_rows else []
    loaded = load_config(config, [*(overrides or []), *skip])
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
    """Report on the test set: both modalities, each alone, every category."""
    from diptych.evaluation.evaluate import evaluate
    from diptych.runs.run import load_run

    typer.echo(evaluate(load_run(run, overrides or [])))
    _print_scores(run)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The run to compare with.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The run that may take its place.")],
    catalogue: Annotated[
        Optional[Path],
        typer.Option(metavar="TABLE", help="Items, with or without categories. [RUN_A's test set]"),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="HTML", callback=check_file, help="Where the page goes.")
    ] = Path("comparison.html"),
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave rows out that cannot be used, and list them.")
    ] = False,
) -> None:
    """Ask two runs about the same items: who is right more often, and a page of what they disagree on."""
    from diptych.analysis.compare import compare_runs
    from diptych.analysis.comparison import summarize
    from diptych.analysis.comparison_page import write_comparison
    from diptych.runs.run import load_run

    old, new = load_run(run_a), load_run(run_b)
    comparison = compare_runs(old, new, catalogue, skip_bad_rows=skip_bad_rows)
    title = f"{comparison.old.name} and {comparison.new.name}"
    notes = {"old": str(run_a), "new": str(run_b), "items": str(comparison.items[0].table)}
    write_comparison(comparison, out, old.preprocessor.spec, title=title, notes=notes)
    typer.echo(f"{summarize(comparison)}\nEverything that they disagree on: {out}")


@app.command()
def predict(
    run: RunArgument,
    image: ImageOption = None,
    text: TextOption = "",
    plot: PlotOption = None,
) -> None:
    """Classify one item in process."""
    from diptych.evaluation.plots import open_picture, plot_prediction
    from diptych.evaluation.predict import predict
    from diptych.runs.run import load_run

    data = _read_picture(image)
    loaded = load_run(run)
    probabilities = predict(loaded, data, text)
    for label, probability in probabilities.items():
        typer.echo(f"{label:<20} {probability:7.2%}")
    if plot:
        picture = open_picture(data, loaded.preprocessor.spec)
        plot_prediction(picture, text, probabilities, plot)


@app.command()
def explain(
    run: RunArgument,
    image: ImageOption = None,
    text: TextOption = "",
    plot: PlotOption = None,
) -> None:
    """Which modality decided: the answer to one item, and to what is left when either is taken away."""
    from diptych.evaluation.explain import describe, explain
    from diptych.evaluation.plots import open_picture, plot_explanation
    from diptych.runs.run import load_run

    data = _read_picture(image)
    loaded = load_run(run)
    explanation = explain(loaded, data, text)
    typer.echo(describe(explanation))
    if plot:
        picture = open_picture(data, loaded.preprocessor.spec)
        plot_explanation(picture, text, explanation.answers, explanation.verdict, plot)


@app.command()
def export(
    run: RunArgument,
    to: Annotated[
        Path,
        typer.Option(callback=check_directory, help="The repository to make, or to add a version to."),
    ] = Path("build/model_repository"),
    target: Annotated[str, typer.Option(help="What will serve it: cpu or gpu.")] = "cpu",
    precision: Annotated[
        str,
        typer.Option(
            help="auto (fp16 on GPUs; bf16 on CPUs that have it, else fp32), fp32, bf16, fp16, "
            "or int8 (text backbone, CPUs only: faster, and some labels change)."
        ),
    ] = "auto",
    tuning: Annotated[
        Optional[Path], typer.Option(metavar="TOML", help="Settings that `diptych tune` wrote.")
    ] = None,
    cores: Annotated[
        Optional[int],
        typer.Option(
            help="CPU cores of the machine that will serve a new repository. Default: as many as here; "
            "with --target gpu 8, which is what docker/ gives the container.",
            min=1,
        ),
    ] = None,
    allow_new_labels: Annotated[
        bool, typer.Option("--allow-new-labels", help="Allow other labels than those that REPO serves.")
    ] = False,
    sign: Annotated[
        Optional[Path],
        typer.Option(metavar="PEM", help="Sign the manifest, and so all files, with this Ed25519 key."),
    ] = None,
    overrides: DataOverrides = None,
) -> None:
    """Export a run as TorchScript into a deployable Triton repository, behind a parity check."""
    from diptych.export.export import export
    from diptych.export.precision import choose_precision, parse_target
    from diptych.runs.run import load_run
    from diptych_serving.repository.settings import load_settings, settings_for
    from diptych_serving.repository.signing import load_private_key

    sign_with = load_private_key(sign) if sign else None
    settings = load_settings(tuning) if tuning else None
    if settings and precision == "auto":
        precision = settings.precision
    if settings is None and not to.exists():
        settings = settings_for(target, cores)
    version, gated = export(
        load_run(run, overrides or []),
        to,
        choose_precision(precision, target),
        settings,
        target=parse_target(target),
        allow_new_labels=allow_new_labels,
        sign_with=sign_with,
        from_table=bool(overrides),
    )
    for result in gated.parity:
        typer.echo(
            f"parity  {result.form:<15} {result.precision}  {result.num_rows} rows  "
            f"largest difference {result.max_difference:.1e}  same label {result.label_agreement:.1%}"
        )
    if gated.precision.note:
        typer.echo(f"precision: {gated.precision.note}")
    next_step = f"diptych serve {to}" if version == 1 else f"diptych release activate {to} {version}"
    typer.echo(f"{to}: version {version}. Serve it: {next_step}")


@app.command()
def serve(
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="What `diptych export` made.")],
    host: Annotated[
        str, typer.Option(help="The address or name to listen on; 0.0.0.0 for all, :: for all of IPv6.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0: any free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0: any free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0: any free one.")] = 8002,
    tritonserver: Annotated[
        Optional[Path],
        typer.Option(help="A tritonserver to use instead of the container's or the one from PyPI."),
    ] = None,
    tuning: Annotated[
        Optional[Path], typer.Option(metavar="TOML", help="Settings that `diptych tune` wrote.")
    ] = None,
    tls_cert: Annotated[
        Optional[Path], typer.Option(metavar="PEM", help="Encrypt gRPC: the server's certificate chain.")
    ] = None,
    tls_key: Annotated[Optional[Path], typer.Option(metavar="PEM", help="That certificate's key.")] = None,
    tls_client_ca: Annotated[
        Optional[Path],
        typer.Option(metavar="PEM", help="Answer only callers with a certificate of this authority."),
    ] = None,
    signed_by: Annotated[
        Optional[Path],
        typer.Option(
            "--require-signature", metavar="PEM", help="Only what the owner of this public key has signed."
        ),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(help="In a row, of a server that died or hangs; 0: end with it.", min=0)
    ] = 5,
    trace_url: Annotated[
        Optional[str],
        typer.Option(metavar="URL", help="Send OpenTelemetry spans there: a collector's OTLP over HTTP."),
    ] = None,
    trace_one_in: Annotated[
        int, typer.Option(help="Of so many requests that no caller traces, trace one.", min=1)
    ] = 1000,
) -> None:
    """Serve a repository with a real tritonserver until interrupted.

    Its administrative API asks for a key: the one in DIPTYCH_ADMIN_KEY (HEADER=VALUE), else a new one.
    """
    from diptych_serving.repository.settings import load_settings
    from diptych_serving.server import serve
    from diptych_serving.server.admin_key import AdminKey
    from diptych_serving.server.supervisor import Restarts
    from diptych_serving.server.tls import ServerTls
    from diptych_serving.server.tracing import Tracing

    status = serve(
        repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        tritonserver=tritonserver,
        settings=load_settings(tuning) if tuning else None,
        admin_key=AdminKey.from_environment(),
        tls=ServerTls.from_options(tls_cert, tls_key, tls_client_ca),
        public_key=signed_by,
        restarts=Restarts(max_in_a_row=max_restarts),
        tracing=Tracing.from_options(trace_url, trace_one_in),
    )
    raise typer.Exit(status)


@app.command()
def tune(
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="What `diptych export` made.")],
    p99_ms: Annotated[float, typer.Option("--p99-ms", help="The limit on the 99th percentile.", min=1)],
    budget_s: Annotated[float, typer.Option("--budget-s", help="How long to search.", min=1)] = 600,
    catalogue: Annotated[
        Optional[Path],
        typer.Option(metavar="TABLE", help="Items in the mix that will be asked; default: made-up ones."),
    ] = None,
    run: Annotated[
        Optional[Path], typer.Option(metavar="RUN", help="Its run, to try other precisions too.")
    ] = None,
    out: Annotated[Path, typer.Option(callback=check_file, help="Where the settings go.")] = Path(
        "tuning.toml"
    ),
    plot: Annotated[Path, typer.Option(callback=check_figure, help="Where the figure goes.")] = Path(
        "tuning.png"
    ),
) -> None:
    """Find the settings with the highest throughput under a limit on latency, on this machine."""
    import tempfile

    from diptych.data.catalogue import read_mix
    from diptych.export.variants import export_precisions
    from diptych_serving.tuning.tune import TuneConfig, made_up_mix
    from diptych_serving.tuning.tune import tune as search

    with tempfile.TemporaryDirectory(prefix="diptych-tune-") as directory:
        repositories = export_precisions(run, Path(directory)) if run else {"auto": repository}
        items = read_mix(catalogue) if catalogue else made_up_mix()
        config = TuneConfig(p99_ms=p99_ms, budget_s=budget_s)
        tuned = search(repositories, items, config, out, plot)
    best = tuned.best
    if best.p99_ms > p99_ms:
        raise UserError(f"no settings keep p99 under {p99_ms:g} ms; the nearest reached {best.p99_ms:.0f} ms")
    typer.echo(
        f"{best.items_per_s:.1f} items/s at p99 {best.p99_ms:.0f} ms with {best.concurrency} callers. "
        f"{plot} shows all {len(tuned.trials)} trials.\n"
        f"Use them: diptych serve {repository} --tuning {out}, or diptych export RUN --tuning {out}"
    )


@app.command()
def demo(
    run: RunArgument,
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="What `diptych export` made of it.")],
    plot: Annotated[
        Path, typer.Option(callback=check_figure, help="Where to draw one item beside its probabilities.")
    ] = Path("prediction.png"),
) -> None:
    """Serve a repository and classify held-out items over gRPC and HTTP."""
    from diptych.cli.demo import demonstrate
    from diptych.runs.run import load_run

    demonstrate(load_run(run), repository, plot)


@app.command()
def ablate(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(callback=check_directory, help="Where the variants' runs go.")],
    seeds: Annotated[int, typer.Option(help="How many seeds each variant is trained with.", min=1)] = 3,
    beside: Annotated[
        Optional[list[Path]], typer.Option(help="Other configs on the same data, a row each.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """What each part is worth: fusions, balancing, each modality alone, simple baselines."""
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
        Path, typer.Option(callback=check_directory, help="Where the list and the figure go.")
    ] = Path("doubtful"),
    top: Annotated[int, typer.Option(help="How many to draw.", min=1)] = 20,
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


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all that is kept.")] = False,
) -> None:
    """Show what is kept to be faster next time, and where; or remove it.

    DIPTYCH_CACHE names the folder, DIPTYCH_CACHE_GB how large it may get (20).
    """
    from diptych_serving import cache

    if clear:
        for path in cache.clear():
            typer.echo(f"{path} stays: another process uses it")
    typer.echo(f"{cache.cache_root()}, at most {cache.limit_bytes() / 1e9:g} GB")
    for each in cache.usage():
        size = f"{each.num_bytes / 1e6:,.1f} MB"
        typer.echo(f"{each.kind:<12}{each.num_files:>6} files{size:>14}  {cache.KINDS[each.kind]}")


@data_app.command()
def openclipart(
    out: Annotated[
        Path, typer.Option(callback=check_directory, help="Where the catalogues and their images go.")
    ] = Path("data/openclipart"),
    source: Annotated[
        Optional[Path],
        typer.Option(
            "--from", metavar="DIR", help="Debian's packages, unpacked already; default: download them."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the split.")] = 0,
) -> None:
    """Eight thousand public-domain drawings with titles, as catalogues of eleven and of four categories."""
    from rich.console import Console

    from diptych.data.openclipart import prepare_openclipart
    from diptych.data.prepared import print_summary

    print_summary(prepare_openclipart(out, source=source, seed=seed), Console())


def _read_picture(image: Path | None) -> bytes:
    if image is None:
        return b""
    if not image.is_file():
        raise UserError(f"--image {image}: no such file")
    try:
        data = image.read_bytes()
    except OSError as error:
        raise UserError(f"--image {image}: cannot read it: {error.strerror}") from None
    if not data:  # 0 bytes would pass for no image
        raise UserError(f"--image {image}: found an empty file; accepted: an image file")
    return data


def _print_scores(run: Path) -> None:
    from diptych.runs.run import read_metrics

    metrics = read_metrics(run)
    split = "test" if "test" in metrics else "val"
    typer.echo(f"{split:<12}{'accuracy':>10}{'macro-F1':>10}{'ECE':>8}{'items':>7}")
    for condition, scores in metrics[split].items():
        typer.echo(
            f"{condition:<12}{scores['accuracy']:>10.3f}{scores['macro_f1']:>10.3f}"
            f"{scores['ece']:>8.3f}{scores['num_items']:>7}"
        )


if __name__ == "__main__":
    main()
