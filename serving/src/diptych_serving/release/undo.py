"""Makes a change of a repository, and of the servers over it, one that is undone unless it succeeds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from diptych_serving.errors import UserError
from diptych_serving.repository import journal
from diptych_serving.repository.journal import Journal
from diptych_serving.repository.layout import ENSEMBLE, STEPS
from diptych_serving.terminal import say

FILES = "files"


class Unreachable(UserError):
    """A server is not there or does not answer in time."""


class Loader(Protocol):
    """As much of a server's administrative API as a change and its undoing need."""

    @property
    def url(self) -> str: ...

    def load(self, model: str) -> None:
        """Load a model as its config says now. Raises UserError."""

    def serving_version(self) -> int | None:
        """The ensemble's version that answers now. Raises UserError."""


@contextlib.contextmanager
def undone_on_failure(
    repository: Path, command: str, version: int, servers: Sequence[Loader]
) -> Iterator[None]:
    """The block may change the configs and let servers load them. Whatever ends it early undoes that.

    The caller holds the repository's lock. Where this process is killed, the journal stays, and the next
    `diptych serve` or `diptych release` undoes what it describes.
    """
    before = journal.begin(repository, command, version, [server.url for server in servers])
    try:
        yield
    except BaseException as error:
        _undo_after(error, repository, before, servers)
        raise
    journal.finish(repository)


@contextlib.contextmanager
def undone_at_the_end(
    repository: Path, command: str, version: int, servers: Sequence[Loader]
) -> Iterator[None]:
    """The same, where the block's own end undoes it too."""
    before = journal.begin(repository, command, version, [server.url for server in servers])
    try:
        yield
    except BaseException as error:
        _undo_after(error, repository, before, servers)
        raise
    if problem := undo(repository, before, servers):
        raise UserError(problem)


def undo_pending(repository: Path, servers: Sequence[Loader]) -> str | None:
    """Undo what an earlier command left unfinished. The caller holds the repository's lock.

    returns  what was found and done, in words; None where there was nothing
    raises   UserError where a server could not be told
    """
    found = journal.read(repository)
    if found is None:
        return None
    interrupted = f"{repository}: {found} was interrupted."
    if problem := undo(repository, found, servers):
        raise UserError(f"{interrupted} {problem}")
    done = f"{interrupted} Undone: version {found.serving} serves, as before."
    told = {server.url for server in servers}
    if not (untold := [url for url in found.servers if url not in told]):
        return done
    return (
        f"{done} {', '.join(untold)} was not told and may still hold version {found.version}, unless it has "
        f"been started again: diptych release activate {repository} {found.serving} --server {untold[0]}"
    )


def undo(repository: Path, before: Journal, servers: Sequence[Loader]) -> str | None:
    """Put everything back. No failure keeps the rest from being done.

    returns  what could not be done, in words, and what to do; None: all is as it was. With a problem the
             journal stays, so that the next command or start tries again
    """
    problems: dict[str, str] = {}  # the first of each server, which explains the rest
    unreachable: set[str] = set()

    def attempt(whose: str, action: Callable[[], None]) -> None:
        if whose in unreachable:
            return  # a server that hangs would take minutes for each question
        try:
            action()
        except UserError as error:
            problems.setdefault(whose, str(error))
            if isinstance(error, Unreachable):
                unreachable.add(whose)

    attempt(FILES, partial(journal.restore_pins, repository, before))
    # The ensemble first, while the steps still keep both versions: no version may go that it names.
    for server in servers:
        attempt(server.url, partial(_restore_ensemble, server, before.serving))
    attempt(FILES, partial(journal.restore_rest, repository, before))
    for server in servers:
        for step in STEPS:
            attempt(server.url, partial(server.load, step))
    if not problems:
        attempt(FILES, partial(journal.finish, repository))
    if not problems:
        return None
    if FILES in problems:
        return (
            f"The repository could not be put back: {problems[FILES]}. When that is mended: "
            f"diptych release rollback {repository}. It does no more than that. The next start of a server "
            "tries it too"
        )
    return (
        f"The repository is as it was and says version {before.serving}, but not every server could be told: "
        f"{'; '.join(problems.values())}. A server that starts again starts on version {before.serving}. "
        f"One that runs on: diptych release rollback {repository} --server URL. It finishes this, and no more"
    )


def _restore_ensemble(server: Loader, version: int) -> None:
    if server.serving_version() != version:
        server.load(ENSEMBLE)


def _undo_after(error: BaseException, repository: Path, before: Journal, servers: Sequence[Loader]) -> None:
    """Raises UserError where not all could be undone; the first error comes first in it."""
    if not isinstance(error, Exception):
        say(
            f"{error or type(error).__name__}: undoing what was done. A second signal ends this at once; "
            f"then diptych release rollback {repository} finishes it, and so does the next start of a server."
        )
    if problem := undo(repository, before, servers):
        reason = str(error) if isinstance(error, UserError) else f"interrupted ({type(error).__name__})"
        raise UserError(f"{reason}\n{problem}") from error
