"""`diptych data` and `cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from diptych.cli.outputs import check_directory

app = typer.Typer()


data_app = typer.Typer(no_args_is_help=True, help="Make the catalogues of items that runs are trained on.")
app.add_typer(data_app, name="data")


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
