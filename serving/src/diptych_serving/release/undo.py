"""Undoes a change of a repository and its servers unless it succeeds."""

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
    """The part of a server's administrative API that a change and its undoing need."""

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
    """The block may change the configs and let servers load them. If it ends early, that is undone.

    The caller holds the repository's lock. If this process is killed, the journal stays, and the next
    `diptych serve` or `diptych release` undoes the change.
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
    """The same, but the normal end of the block also undoes the change."""
    before = journal.begin(repository, command, version, [server.url for server in servers])
    try:
        yield
    except BaseException as error:
        _undo_after(error, repository, before, servers)
        raise
    if problem := undo(repository, before, servers):
        raise UserError(problem)


def undo_pending(repository: Path, servers: Sequence[Loader]) -> str | None:
    """Undo an interrupted command. The caller holds the repository's lock.

    returns  a description of it; None if there was nothing to undo
    raises   UserError if a server could not be reached
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
    """Restore everything. A failure does not stop the other steps.

    returns  what failed and what to do, as text; None: all is restored. After a failure the journal stays,
             so that the next command or start tries again
    """
    problems: dict[str, str] = {}  # the first problem of each server, which explains the others
    unreachable: set[str] = set()

    def attempt(whose: str, action: Callable[[], None]) -> None:
        if whose in unreachable:
            return  # a hung server would take minutes for each request
        try:
            action()
        except UserError as error:
            problems.setdefault(whose, str(error))
            if isinstance(error, Unreachable):
                unreachable.add(whose)

    attempt(FILES, partial(journal.restore_pins, repository, before))
    # The ensemble first, while the steps still hold both versions (docs/triton.md, 8).
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
            f"The repository could not be restored: {problems[FILES]}. After you have corrected that: "
            f"diptych release rollback {repository}. It only finishes this. The next start of a server "
            "also tries it"
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
    """Undo after an error. Raises UserError, with that error first, if the undoing fails."""
    if not isinstance(error, Exception):
        say(
            f"{error or type(error).__name__}: undoing what was done. A second signal ends this at once; "
            f"then diptych release rollback {repository} finishes it, and so does the next start of a server."
        )
    if problem := undo(repository, before, servers):
        reason = str(error) if isinstance(error, UserError) else f"interrupted ({type(error).__name__})"
        raise UserError(f"{reason}\n{problem}") from error
