"""The commands `diptych release ...`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from diptych.cli.outputs import check_file

if TYPE_CHECKING:
    from diptych_serving.release.control import Control

release_app = typer.Typer(no_args_is_help=True, help="Choose which exported version serves.")

RepositoryArgument = Annotated[
    Path, typer.Argument(metavar="REPO", help="A model repository, made by `diptych export`.")
]
ServersOption = Annotated[
    Optional[list[str]],
    typer.Option(
        metavar="URL",
        help="A running server of this repository: grpc://HOST:PORT, or grpcs:// for TLS. Repeat it if "
        "several servers share the repository. Default: none; the next start serves the version.",
    ),
]
KeyOption = Annotated[
    Optional[str],
    typer.Option(
        metavar="HEADER=VALUE",
        envvar="DIPTYCH_ADMIN_KEY",
        help="The key of the server's administrative API. Default: the key of your own server here.",
    ),
]
CaOption = Annotated[
    Optional[Path],
    typer.Option(
        "--tls-ca",
        metavar="PEM",
        envvar="DIPTYCH_CA_FILE",
        help="The authority of the server's certificate, for grpcs://. [gRPC's own list]",
    ),
]
CertificateOption = Annotated[
    Optional[Path],
    typer.Option(
        "--tls-cert",
        metavar="PEM",
        envvar="DIPTYCH_CERTIFICATE_FILE",
        help="A client certificate.",
    ),
]
PrivateKeyOption = Annotated[
    Optional[Path],
    typer.Option("--tls-key", metavar="PEM", envvar="DIPTYCH_KEY_FILE", help="Its private key."),
]
SignatureOption = Annotated[
    Optional[Path],
    typer.Option(
        "--require-signature",
        metavar="PEM",
        help="Accept only versions signed with the key of this public key.",
    ),
]
KeepOption = Annotated[
    Optional[int], typer.Option(help="Keep only the N newest versions.", metavar="N", min=1)
]


@release_app.command("list")
def list_releases(
    repository: RepositoryArgument,
    server: Annotated[
        Optional[str], typer.Option(metavar="URL", help="Also ask this server for its loaded versions.")
    ] = None,
    key: KeyOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: PrivateKeyOption = None,
) -> None:
    """List the versions of a repository, which one serves, and which have other labels."""
    from rich.console import Console

    from diptych_serving.release.table import release_table
    from diptych_serving.repository import journal

    if found := journal.read(repository):
        typer.echo(
            f"{found} is running or was interrupted. If interrupted: diptych release rollback {repository} "
            "only undoes it, as does the next start of a server"
        )
    if server is None:
        Console().print(release_table(repository))
        return
    with _connect([server], key, tls_ca, tls_cert, tls_key) as (control,):
        Console().print(release_table(repository, control))


@release_app.command()
def activate(
    repository: RepositoryArgument,
    version: Annotated[Optional[int], typer.Argument(help="Default: the newest.")] = None,
    server: ServersOption = None,
    key: KeyOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: PrivateKeyOption = None,
    keep: KeepOption = None,
    allow_new_labels: Annotated[
        bool, typer.Option("--allow-new-labels", help="Allow labels that differ from the serving version's.")
    ] = False,
    signed_by: SignatureOption = None,
) -> None:
    """Make another version serve, after checking its files and its golden answers."""
    with _connect(server or (), key, tls_ca, tls_cert, tls_key) as controls:
        _activate(repository, version, controls, keep, allow_new_labels, signed_by)


@release_app.command()
def rollback(
    repository: RepositoryArgument,
    server: ServersOption = None,
    key: KeyOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: PrivateKeyOption = None,
    signed_by: SignatureOption = None,
) -> None:
    """Make the previous version serve again, with its labels.

    If a release was interrupted, only undo it.
    """
    from diptych_serving.release.activation import undo_interrupted_command
    from diptych_serving.repository.layout import previous_version

    with _connect(server or (), key, tls_ca, tls_cert, tls_key) as controls:
        with _interruptible(repository):
            undone = undo_interrupted_command(repository, controls)
        if undone:
            typer.echo(undone)
            return
        # Callers know these labels, and this command must work at once.
        version = previous_version(repository)
        _activate(repository, version, controls, keep=None, allow_new_labels=True, signed_by=signed_by)


def _activate(
    repository: Path,
    version: int | None,
    controls: Sequence[Control],
    keep: int | None,
    allow_new_labels: bool,
    signed_by: Path | None,
) -> None:
    from diptych_serving.release.activation import activate

    with _interruptible(repository):
        done = activate(
            repository,
            _newest(repository) if version is None else version,
            *controls,
            keep=keep,
            allow_new_labels=allow_new_labels,
            public_key=signed_by,
        )
    if done.undone:
        typer.echo(done.undone)
    typer.echo(
        f"{repository}: version {done.version} serves"
        + (f" at {', '.join(control.url for control in controls)}" if controls else " from the next start")
        + (f", {done.before} did before" if done.before != done.version else "")
        + f"; golden answers differ by at most {done.golden_difference:.1e}"
    )
    if done.new_labels:
        typer.echo(f"other labels than before: it {done.new_labels}")
    if done.pruned:
        typer.echo(f"deleted: {', '.join(f'version {version}' for version in done.pruned)}")


@release_app.command("shadow")
def shadow_release(
    repository: RepositoryArgument,
    catalogue: Annotated[
        Path, typer.Option(metavar="TABLE", help="The items to send, with or without categories.")
    ],
    server: Annotated[
        str, typer.Option(metavar="URL", help="The server, as grpc://HOST:PORT, or grpcs:// for TLS.")
    ],
    version: Annotated[Optional[int], typer.Argument(help="Default: the newest.")] = None,
    key: KeyOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: PrivateKeyOption = None,
    out: Annotated[
        Path, typer.Option(metavar="HTML", callback=check_file, help="The HTML page to write.")
    ] = Path("shadow.html"),
    concurrency: Annotated[int, typer.Option(help="Number of items in flight.", min=1)] = 2,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out bad rows, and list them.")
    ] = False,
    signed_by: SignatureOption = None,
) -> None:
    """Send the same items to a new version and to the serving one, and write their disagreements."""
    from diptych.analysis.comparison.asking import compare_versions
    from diptych.analysis.comparison.page import write_comparison
    from diptych.analysis.comparison.result import summarize
    from diptych_serving.release.shadow import preprocessor_of

    version = _newest(repository) if version is None else version
    with _connect([server], key, tls_ca, tls_cert, tls_key) as (control,), _interruptible(repository):
        comparison = compare_versions(
            repository,
            version,
            control,
            catalogue,
            concurrency=concurrency,
            skip_bad_rows=skip_bad_rows,
            public_key=signed_by,
            on_undone=typer.echo,
        )
    old, new = comparison.old.name, comparison.new.name
    notes = {"repository": str(repository), "server": server, "items": str(catalogue)}
    notes["serves"], notes["shadows it"] = old, new
    spec = preprocessor_of(repository, version).spec
    write_comparison(comparison, out, spec, title=f"{old}, which serves, and {new}", notes=notes)
    typer.echo(f"{summarize(comparison)}\nAll disagreements: {out}. {old} still serves.")


def _newest(repository: Path) -> int:
    from diptych_serving.repository.layout import held_versions

    return (held_versions(repository) or [0])[-1]


@contextlib.contextmanager
def _connect(
    servers: Sequence[str],
    key: str | None,
    ca: Path | None,
    certificate: Path | None,
    private_key: Path | None,
) -> Iterator[list[Control]]:
    """Connections to the servers; the list may be empty."""
    if not servers:
        yield []
        return
    from diptych_client import InvalidInput, Tls
    from diptych_serving.errors import UserError
    from diptych_serving.release.control import Control
    from diptych_serving.server.admin_key import AdminKey

    try:
        tls = Tls(ca, certificate, private_key) if ca or certificate or private_key else None
    except InvalidInput as error:
        raise UserError(str(error)) from None
    headers = AdminKey.parse(key).grpc_headers if key else None
    with contextlib.ExitStack() as connections:
        yield [connections.enter_context(Control(server, headers, tls)) for server in dict.fromkeys(servers)]


@contextlib.contextmanager
def _interruptible(repository: Path) -> Iterator[None]:
    """A signal ends the block after its changes are undone. A second signal ends it at once; the journal then
    records what is left to undo.
    """
    from diptych_serving.repository.layout import serving_version
    from diptych_serving.server.signals import Stopped, signals_raise_stopped

    before = serving_version(repository)
    with signals_raise_stopped(second_kills=True):
        try:
            yield
        except Stopped as stopped:
            now = serving_version(repository)
            typer.echo(
                f"{stopped}: ended in order. {repository}: version {now} serves"
                + (", as before" if now == before else f"; before it was {before}"),
                err=True,
            )
            raise typer.Exit(stopped.status) from None
