"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from diptych.cli.outputs import check_figure

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, made by `diptych train`.")]
ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A TOML file, or the name of a shipped config: quickstart.")
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
        help="Use another table than in training, such as data.test_csv=FILE; repeatable.",
    ),
]
ImageOption = Annotated[Optional[Path], typer.Option(help="An image file.")]
TextOption = Annotated[str, typer.Option(help="The item's text.")]
PlotOption = Annotated[
    Optional[Path],
    typer.Option(callback=check_figure, help="Also draw the result into this file: .png, .svg or .pdf."),
]
