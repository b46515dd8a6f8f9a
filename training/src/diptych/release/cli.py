"""The commands `diptych release ...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from diptych.release.control import Control

release_app = typer.Typer(no_args_is_help=True, help="Choose which exported version serves.")

RepositoryArgument = Annotated[
    Path, typer.Argument(metavar="REPO", help="A model repository, made by `diptych export`.")
]
ServerOption = Annotated[
    Optional[str],
    typer.Option(
        metavar="URL",
        help="The server that serves it, as grpc://HOST:PORT, or grpcs:// for TLS. "
        "Default: none, the next start takes it up.",
    ),
]
KeyOption = Annotated[
    Optional[str],
    typer.Option(
        metavar="HEADER=VALUE",
        envvar="DIPTYCH_ADMIN_KEY",
        help="What opens the server's administrative API. Default: what your own server here says.",
    ),
]
CaOption = Annotated[
    Optional[Path],
    typer.Option(
        "--tls-ca", metavar="PEM", envvar="DIPTYCH_CA_FILE", help="Whom to trust, for grpcs://. [the usual]"
    ),
]
CertificateOption = Annotated[
    Optional[Path],
    typer.Option(
        "--tls-cert",
        metavar="PEM",
        envvar="DIPTYCH_CERTIFICATE_FILE",
        help="Our own certificate.",
    ),
]
PrivateKeyOption = Annotated[
    Optional[Path],
    typer.Option("--tls-key", metavar="PEM", envvar="DIPTYCH_KEY_FILE", help="Its private key."),
]
SignatureOption = Annotated[
    Optional[Path],
    typer.Option(
        "--require-signature", metavar="PEM", help="Only what the owner of this public key has signed."
    ),
]
KeepOption = Annotated[Optional[int], typer.Option(help="Delete all but so many of the newest.", min=1)]


@release_app.command("list")
def list_releases(
    repository: RepositoryArgument,
    server: ServerOption = None,
    key: KeyOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: PrivateKeyOption = None,
) -> None:
    """The versions that a repository holds, which one serves, and which have other labels than that one."""
    from rich.console import Console

    from diptych.release.table import release_table

    if server is None:
        Console().print(release_table(repository))
        return
    with _connect(server, key, tls_ca, tls_cert, tls_key) as control:
        Console().print(release_table(repository, control))


@release_app.command()
def activate(
    repository: RepositoryArgument,
    version: Annotated[Optional[int], typer.Argument(help="Default: the newest.")] = None,
    server: ServerOption = None,
    key: KeyOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: PrivateKeyOption = None,
    keep: KeepOption = None,
    allow_new_labels: Annotated[
        bool, typer.Option("--allow-new-labels", help="Even where its labels are not those that are served.")
    ] = False,
    signed_by: SignatureOption = None,
) -> None:
    """Let another version serve, after its checksums and its golden answers have been proven."""
    from diptych.release.activation import activate, activate_files

    version = _newest(repository) if version is None else version
    if server is None:
        done = activate_files(
            repository, version, keep, allow_new_labels=allow_new_labels, public_key=signed_by
        )
    else:
        with _connect(server, key, tls_ca, tls_cert, tls_key) as control:
            done = activate(
                repository, version, control, keep, allow_new_labels=allow_new_labels, public_key=signed_by
            )
    typer.echo(
        f"{repository}: version {done.version} serves"
        + (f" at {server}" if server else " from the next start")
        + (f", {done.before} did before" if done.before != done.version else "")
        + f"; golden answers differ by at most {done.golden_difference:.1e}"
    )
    if done.new_labels:
        typer.echo(f"other labels than before: it {done.new_labels}")
    if done.pruned:
        typer.echo(f"deleted: {', '.join(f'version {version}' for version in done.pruned)}")


@release_app.command()
def rollback(
    repository: RepositoryArgument,
    server: ServerOption = None,
    key: KeyOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: PrivateKeyOption = None,
    signed_by: SignatureOption = None,
) -> None:
    """Let the version serve that served before this one, with the labels that it had."""
    from diptych.release.repository import previous_version

    # Whatever its labels are, callers have had them; and who rolls back is in a hurry.
    version = previous_version(repository)
    activate(
        repository,
        version,
        server,
        key,
        tls_ca,
        tls_cert,
        tls_key,
        keep=None,
        allow_new_labels=True,
        signed_by=signed_by,
    )


@release_app.command("shadow")
def shadow_release(
    repository: RepositoryArgument,
    catalogue: Annotated[
        Path, typer.Option(metavar="TABLE", help="The items to ask about, with or without categories.")
    ],
    server: Annotated[
        str, typer.Option(metavar="URL", help="The server, as grpc://HOST:PORT, or grpcs:// for TLS.")
    ],
    version: Annotated[Optional[int], typer.Argument(help="Default: the newest.")] = None,
    key: KeyOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertificateOption = None,
    tls_key: PrivateKeyOption = None,
    out: Annotated[Path, typer.Option(metavar="HTML", help="Where the page goes.")] = Path("shadow.html"),
    concurrency: Annotated[int, typer.Option(help="How many items to ask about at once.", min=1)] = 2,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave rows out that are no items, and list them.")
    ] = False,
    signed_by: SignatureOption = None,
) -> None:
    """Ask a version, before it serves, and the one that serves about the same items."""
    from diptych.comparison import summarize
    from diptych.release.shadow import shadow, spec_of
    from diptych.report.comparison_page import write_comparison

    version = _newest(repository) if version is None else version
    with _connect(server, key, tls_ca, tls_cert, tls_key) as control:
        comparison = shadow(
            repository,
            version,
            control,
            catalogue,
            concurrency=concurrency,
            skip_bad_rows=skip_bad_rows,
            public_key=signed_by,
        )
    old, new = comparison.old.name, comparison.new.name
    notes = {"repository": str(repository), "server": server, "items": str(catalogue)}
    notes["serves"], notes["shadows it"] = old, new
    write_comparison(
        comparison, out, spec_of(repository, version), title=f"{old}, which serves, and {new}", notes=notes
    )
    typer.echo(f"{summarize(comparison)}\nEverything that they disagree on: {out}. {old} serves on.")


def _newest(repository: Path) -> int:
    from diptych.release.repository import held_versions

    return (held_versions(repository) or [0])[-1]


def _connect(
    server: str, key: str | None, ca: Path | None, certificate: Path | None, private_key: Path | None
) -> Control:
    from diptych.errors import UserError
    from diptych.release.control import Control
    from diptych.serving.admin_key import AdminKey
    from diptych_client import InvalidInput, Tls

    try:
        tls = Tls(ca, certificate, private_key) if ca or certificate or private_key else None
    except InvalidInput as error:
        raise UserError(str(error)) from None
    return Control(server, AdminKey.parse(key).grpc_headers if key else None, tls)
