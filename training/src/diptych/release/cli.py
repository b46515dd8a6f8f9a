"""The commands `diptych release ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

release_app = typer.Typer(no_args_is_help=True, help="Choose which exported version serves.")

RepositoryArgument = Annotated[
    Path, typer.Argument(metavar="REPO", help="A model repository, made by `diptych export`.")
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The server that serves it, as grpc://HOST:PORT. Default: none, the next start takes it up.",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="HEADER=VALUE",
        envvar="DIPTYCH_ADMIN_KEY",
        help="What opens the server's administrative API. Default: as your own server on this machine says.",
    ),
]
KeepOption = Annotated[int | None, typer.Option(help="Delete all but so many of the newest versions.", min=1)]


@release_app.command("list")
def list_releases(repository: RepositoryArgument) -> None:
    """The versions that a repository holds, and which one serves."""
    from rich.console import Console
    from rich.table import Table

    from diptych.release.repository import held_versions, loaded_versions, read_manifest, serving_version

    serving, loaded = serving_version(repository), loaded_versions(repository)
    table = Table()
    for column in ("version", "state", "exported", "run", "test accuracy", "precision", "git commit"):
        table.add_column(column)
    for version in held_versions(repository):
        manifest = read_manifest(repository, version)
        state = "serves" if version == serving else "loaded" if version in loaded else ""
        test = (manifest["run"]["test"] or {}).get("both", {}).get("accuracy")
        table.add_row(
            str(version),
            state,
            manifest["created"],
            manifest["run"]["name"],
            "" if test is None else f"{test:.3f}",
            " ".join(sorted(set(manifest["precision"].values()))),
            (manifest["git_commit"] or "")[:10],
        )
    Console().print(table)


@release_app.command()
def activate(
    repository: RepositoryArgument,
    version: Annotated[int | None, typer.Argument(help="Default: the newest.")] = None,
    server: ServerOption = None,
    key: KeyOption = None,
    keep: KeepOption = None,
) -> None:
    """Let another version serve, after its checksums and its golden answers have been proven."""
    from diptych.release.repository import held_versions

    newest = (held_versions(repository) or [0])[-1]
    _activate(repository, newest if version is None else version, server, key, keep)


@release_app.command()
def rollback(repository: RepositoryArgument, server: ServerOption = None, key: KeyOption = None) -> None:
    """Let the version serve that served before this one."""
    from diptych.release.repository import previous_version

    _activate(repository, previous_version(repository), server, key, keep=None)


def _activate(repository: Path, version: int, server: str | None, key: str | None, keep: int | None) -> None:
    from diptych.release.activation import activate, activate_files
    from diptych.release.control import Control
    from diptych.serving.admin_key import AdminKey

    if server is None:
        done = activate_files(repository, version, keep)
    else:
        with Control(server, AdminKey.parse(key).grpc_headers if key else None) as control:
            done = activate(repository, version, control, keep)
    typer.echo(
        f"{repository}: version {done.version} serves"
        + (f" at {server}" if server else " from the next start")
        + (f", {done.before} did before" if done.before != done.version else "")
        + f"; golden answers differ by at most {done.golden_difference:.1e}"
    )
    if done.pruned:
        typer.echo(f"deleted: {', '.join(f'version {version}' for version in done.pruned)}")
