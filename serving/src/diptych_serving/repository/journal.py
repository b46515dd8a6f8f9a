"""The journal of a release: the repository's state before a release command changes it.

The journal is written before the first change and removed when the command has succeeded or undone
everything. While it exists, the command is running or was interrupted (error, signal, kill -9, power cut).
A command or a server start that holds the repository's lock and finds a journal undoes the change. Standard
library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from diptych_serving.errors import UserError
from diptych_serving.repository import files
from diptych_serving.repository.layout import (
    ENSEMBLE,
    STEPS,
    config_of,
    loaded_by_step,
    read_activations,
    require_repository,
    serving_version,
    write_activations,
    write_loaded_of,
    write_pins,
)
from diptych_serving.repository.lock import only_one

JOURNAL_FILE = "release_in_progress.json"
# How long a start waits for a running release, most of which is loading a large model.
WAIT_S = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Journal:
    """command      such as "activate"
    version      its version
    serving      the version that the ensemble named before
    loaded       the versions that each step's config named before, by step
    activations  the versions that served before, the oldest first
    servers      URLs of the servers that were changed
    begun        when, in UTC
    """

    command: str
    version: int
    serving: int
    loaded: Mapping[str, Sequence[int]]
    activations: Sequence[int]
    servers: Sequence[str]
    begun: str

    def __str__(self) -> str:
        at = f" at {', '.join(self.servers)}" if self.servers else ""
        return f"`release {self.command}` of version {self.version}{at}, begun {self.begun}"


def begin(repository: Path, command: str, version: int, servers: Sequence[str]) -> Journal:
    """Record the repository's state now."""
    journal = Journal(
        command=command,
        version=version,
        serving=serving_version(repository),
        loaded=loaded_by_step(repository),
        activations=read_activations(repository),
        servers=list(servers),
        begun=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    content = json.dumps(dataclasses.asdict(journal), indent=2) + "\n"
    files.replace_text(_path(repository), content, like=config_of(repository, ENSEMBLE))
    return journal


def read(repository: Path) -> Journal | None:
    """The journal of an interrupted or running command; None if there is none."""
    path = _path(repository)
    if not path.exists():
        return None
    try:
        tree: dict[str, Any] = json.loads(files.read_text(path))
        return Journal(**tree)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: is not the journal of a release ({error}). Look at the pins in "
            f"{config_of(repository, ENSEMBLE)} and the version_policy of each step, then remove the file"
        ) from None


def restore_pins(repository: Path, journal: Journal) -> None:
    """Let the ensemble name the previous version."""
    if serving_version(repository) != journal.serving:
        write_pins(repository, journal.serving)


def restore_rest(repository: Path, journal: Journal) -> None:
    """Restore each step's config and the history."""
    found = loaded_by_step(repository)
    for step, versions in journal.loaded.items():
        if found[step] != list(versions):
            write_loaded_of(repository, step, versions)
    if read_activations(repository) != list(journal.activations):
        write_activations(repository, journal.activations)


def finish(repository: Path) -> None:
    """Remove the journal: the present state is final."""
    path = _path(repository)
    try:
        files.remove(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror})") from None
    for model in (ENSEMBLE, *STEPS):
        files.remove_unfinished(config_of(repository, model))


def undo_interrupted(repository: Path, say: Callable[[str], object], wait_s: float = WAIT_S) -> None:
    """Before a server starts, undo an interrupted release, or wait for a running one.

    say     receives a line for the operator
    raises  UserError if the repository cannot be changed, or a release is still running after the wait
    """
    require_repository(repository)
    if not _path(repository).exists():
        return
    with only_one(repository, wait_s, say):
        journal = read(repository)
        if journal is None:
            return  # its command has finished
        try:
            restore_pins(repository, journal)
            restore_rest(repository, journal)
            with contextlib.suppress(UserError):  # read-only and unchanged: nothing to undo
                finish(repository)
        except UserError as error:
            raise UserError(
                f"{repository}: {journal} was interrupted and cannot be undone here: {error}. Undo it where "
                f"the repository can be written: diptych release rollback {repository}"
            ) from None
    say(f"{repository}: {journal} was interrupted. Undone: version {journal.serving} serves, as before.")


def _path(repository: Path) -> Path:
    return repository / ENSEMBLE / JOURNAL_FILE
