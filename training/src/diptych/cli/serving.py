"""`diptych export`, `serve`, `tune` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from diptych.cli.options import (
    DataOverrides,
    RunArgument,
)
from diptych.cli.outputs import check_directory, check_figure, check_file
from diptych_serving.errors import UserError

app = typer.Typer()


@app.command()
def export(
    run: RunArgument,
    to: Annotated[
        Path,
        typer.Option(callback=check_directory, help="The repository to make or to add a version to."),
    ] = Path("build/model_repository"),
    target: Annotated[str, typer.Option(help="The device that will serve it: cpu or gpu.")] = "cpu",
    precision: Annotated[
        str,
        typer.Option(
            help="auto (fp16 on GPUs; bf16 on CPUs that have it, else fp32), fp32, bf16, fp16, "
            "or int8 (text backbone, CPUs only: faster, and some labels change)."
        ),
    ] = "auto",
    runtime: Annotated[
        str,
        typer.Option(
            help="What runs the graphs on a CPU without a native backend: auto (OpenVINO if it is installed "
            "and answers as well, else TorchScript), openvino or torchscript."
        ),
    ] = "auto",
    max_accuracy_drop: Annotated[
        float,
        typer.Option(
            help="How many points of accuracy fewer bits may cost, on validation items.", min=0, max=100
        ),
    ] = 0.5,
    gate_catalogue: Annotated[
        Optional[Path],
        typer.Option(metavar="TABLE", help="More items to judge fewer bits by, with or without categories."),
    ] = None,
    tuning: Annotated[
        Optional[Path], typer.Option(metavar="TOML", help="Settings that `diptych tune` wrote.")
    ] = None,
    cores: Annotated[
        Optional[int],
        typer.Option(
            help="CPU cores of the machine that will serve a new repository. Default: those of this machine, "
            "with --target gpu 8, as in docker/.",
            min=1,
        ),
    ] = None,
    allow_new_labels: Annotated[
        bool, typer.Option("--allow-new-labels", help="Allow labels that differ from the serving version's.")
    ] = False,
    sign: Annotated[
        Optional[Path],
        typer.Option(metavar="PEM", help="Sign the manifest, which covers all files, with this Ed25519 key."),
    ] = None,
    overrides: DataOverrides = None,
) -> None:
    """Export a run to a Triton repository. Stops if the exported model answers differently."""
    from diptych.export.export import export
    from diptych.export.judgement import Limits
    from diptych.export.precision import choose_precision, choose_runtime, parse_target
    from diptych.runs.run import load_run
    from diptych_serving.repository.settings import load_settings, settings_for
    from diptych_serving.repository.signing import load_private_key

    sign_with = load_private_key(sign) if sign else None
    settings = load_settings(tuning) if tuning else None
    if settings and precision == "auto":
        precision = settings.precision
    if settings is None and not to.exists():
        settings = settings_for(target, cores)
    chosen = choose_precision(precision, target)
    version, gated = export(
        load_run(run, overrides or []),
        to,
        chosen,
        settings,
        target=parse_target(target),
        runtime=choose_runtime(runtime, target, chosen),
        limits=Limits(accuracy_drop=max_accuracy_drop / 100),
        catalogue=gate_catalogue,
        allow_new_labels=allow_new_labels,
        sign_with=sign_with,
        from_table=bool(overrides),
    )
    for result in gated.parity:
        typer.echo(
            f"parity  {result.form:<15} {result.precision}  {result.num_rows} rows  "
            f"largest difference {result.max_difference:.1e}  same label {result.label_agreement:.1%}"
        )
    for judgement in gated.judgements:
        typer.echo(f"gate    {judgement}")
    if gated.precision.note:
        typer.echo(f"precision: {gated.precision.note}")
    name = {"openvino": "OpenVINO", "torchscript": "TorchScript"}[gated.runtime]
    typer.echo(f"runtime: {name} in {gated.precision}")
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
        typer.Option(help="Use this tritonserver instead of the container's or PyPI's."),
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
            "--require-signature",
            metavar="PEM",
            help="Serve only versions signed with the key of this public key.",
        ),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(help="Restarts in a row of a dead or hung server; 0: end instead.", min=0)
    ] = 5,
    trace_url: Annotated[
        Optional[str],
        typer.Option(metavar="URL", help="Send OpenTelemetry spans to this collector (OTLP over HTTP)."),
    ] = None,
    trace_one_in: Annotated[
        int, typer.Option(help="Trace one in N of the requests that no caller traces.", min=1)
    ] = 1000,
) -> None:
    """Serve a repository with a real tritonserver until interrupted.

    Its administrative API needs a key: DIPTYCH_ADMIN_KEY (HEADER=VALUE), else a new one.
    """
    from diptych_serving.repository.settings import load_settings
    from diptych_serving.server import ServerConfig, Supervision, serve
    from diptych_serving.server.admin_key import AdminKey
    from diptych_serving.server.ports import Ports
    from diptych_serving.server.supervisor import Restarts
    from diptych_serving.server.tls import ServerTls
    from diptych_serving.server.tracing import Tracing

    status = serve(
        repository,
        ServerConfig(
            host=host,
            ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port),
            tritonserver=tritonserver,
            settings=load_settings(tuning) if tuning else None,
            admin_key=AdminKey.from_environment(),
            tls=ServerTls.from_options(tls_cert, tls_key, tls_client_ca),
            tracing=Tracing.from_options(trace_url, trace_one_in),
        ),
        Supervision(public_key=signed_by),
        Restarts(max_in_a_row=max_restarts),
    )
    raise typer.Exit(status)


@app.command()
def tune(
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="What `diptych export` made.")],
    p99_ms: Annotated[float, typer.Option("--p99-ms", help="The limit on the 99th percentile.", min=1)],
    budget_s: Annotated[float, typer.Option("--budget-s", help="Seconds to search.", min=1)] = 600,
    catalogue: Annotated[
        Optional[Path],
        typer.Option(metavar="TABLE", help="Items like those of your callers; default: generated ones."),
    ] = None,
    run: Annotated[
        Optional[Path], typer.Option(metavar="RUN", help="The repository's run, to try other precisions too.")
    ] = None,
    out: Annotated[Path, typer.Option(callback=check_file, help="The settings file to write.")] = Path(
        "tuning.toml"
    ),
    plot: Annotated[Path, typer.Option(callback=check_figure, help="The figure to write.")] = Path(
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
    repository: Annotated[
        Path, typer.Argument(metavar="REPO", help="The repository that `diptych export` made of it.")
    ],
    plot: Annotated[
        Path,
        typer.Option(callback=check_figure, help="The figure to write: one item with its probabilities."),
    ] = Path("prediction.png"),
) -> None:
    """Serve a repository and classify held-out items over gRPC and HTTP."""
    from diptych.cli.demo import demonstrate
    from diptych.runs.run import load_run

    demonstrate(load_run(run), repository, plot)
