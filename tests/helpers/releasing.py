"""Runs `diptych release` as a user does, and looks at what a repository holds afterwards."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from diptych.cli.main import app


def run_command(*arguments: str | Path) -> str:
    """What `diptych release ...` prints, folded to one line for the width of a terminal."""
    command = ["release", *map(str, arguments)]
    done = CliRunner().invoke(app, command, catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def contents(repository: Path) -> dict[str, bytes]:
    """Every file but the bytecode that the server's own Python writes beside the sources which it loads."""
    return {
        str(path): path.read_bytes()
        for path in sorted(repository.rglob("*"))
        if path.is_file() and path.parent.name != "__pycache__"
    }
