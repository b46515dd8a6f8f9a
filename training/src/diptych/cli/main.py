"""The command `diptych`: trains, evaluates, exports and serves image-and-text classifiers."""

from __future__ import annotations

import errno
import sys
import warnings
from typing import NoReturn

import typer
from rich.markup import escape

from diptych.cli import answers, data, serving, studies, training
from diptych.cli.release import release_app
from diptych_serving.errors import UserError
from diptych_serving.progress import console
from diptych_serving.server.signals import end_in_order
from diptych_serving.terminal import accept_all_letters

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for group in (training, answers, studies, serving, data):
    app.add_typer(group.app)
app.add_typer(release_app, name="release")

# A full disk, a quota, another user's directory: not our mistake, so no traceback.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main() -> None:
    """Entry point. An error that the user can correct is one message and status 1, without a traceback."""
    end_in_order()
    accept_all_letters()
    warnings.simplefilter(
        "ignore", FutureWarning
    )  # libraries warn about each other; in tests warnings are errors
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


if __name__ == "__main__":
    main()
