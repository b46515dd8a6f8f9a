"""`diptych data` and `cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from diptych.cli.outputs import check_directory

app = typer.Typer()


data_app = typer.Typer(no_args_is_help=True, help="Prepare tables of items to train on.")
app.add_typer(data_app, name="data")


@data_app.command()
def openclipart(
    out: Annotated[
        Path, typer.Option(callback=check_directory, help="The directory to write tables and images to.")
    ] = Path("data/openclipart"),
    source: Annotated[
        Optional[Path],
        typer.Option(
            "--from",
            metavar="DIR",
            help="A directory with Debian's unpacked packages; default: download them.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The random seed of the split.")] = 0,
) -> None:
    """Prepare public-domain drawings with titles: tables with eleven and with four categories."""
    from rich.console import Console

    from diptych.data.openclipart import prepare_openclipart
    from diptych.data.prepared import print_summary

    print_summary(prepare_openclipart(out, source=source, seed=seed), Console())


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all cached files.")] = False,
) -> None:
    """Show or clear the cache.

    DIPTYCH_CACHE names its folder, DIPTYCH_CACHE_GB its largest size (20).
    """
    from diptych_serving import cache

    if clear:
        for path in cache.clear():
            typer.echo(f"{path} stays: another process uses it")
    typer.echo(f"{cache.cache_root()}, at most {cache.limit_bytes() / 1e9:g} GB")
    for each in cache.usage():
        size = f"{each.num_bytes / 1e6:,.1f} MB"
        typer.echo(f"{each.kind:<12}{each.num_files:>6} files{size:>14}  {cache.KINDS[each.kind]}")
