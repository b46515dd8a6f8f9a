"""Checks a command's output paths before its work starts."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import typer

from diptych_serving.errors import UserError


def require_file(path: Path, option: str) -> None:
    """Raise UserError if no file can be written there."""
    if path.is_dir():
        raise UserError(f"{option} {path}: is a directory; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no directory {path.parent}")
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}") from None
    if is_new:
        path.unlink()


def require_figure(path: Path, option: str) -> None:
    """Raise UserError if no figure can be written there. Its ending names its format."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in formats:
        found = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
        raise UserError(f"{option} {path}: {found}; accepted: .{', .'.join(formats)}")
    require_file(path, option)


def require_directory(path: Path, option: str) -> None:
    """Raise UserError if the directory does not exist and cannot be made."""
    nearest = path.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"{option} {path}: {nearest} is a file; name a directory")
    try:
        tempfile.TemporaryDirectory(dir=nearest, prefix=".diptych-").cleanup()
    except OSError as error:
        raise UserError(f"{option} {path}: nothing can be written in {nearest}: {error.strerror}") from None


# Callbacks of options: typer calls them before the command, also with the defaults.


def check_file(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """For an option that names a file."""
    if path is not None:
        require_file(path, parameter.opts[-1])
    return path


def check_figure(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """For an option that names a figure."""
    if path is not None:
        require_figure(path, parameter.opts[-1])
    return path


def check_directory(parameter: typer.CallbackParam, path: Path) -> Path:
    """For an option that names a directory."""
    require_directory(path, parameter.opts[-1])
    return path
