"""Moves a running server from one version to another, or leaves everything as it was."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diptych_serving.errors import UserError
from diptych_serving.release.undo import Loader, undo_pending, undone_on_failure
from diptych_serving.repository import golden
from diptych_serving.repository.golden import GOLDEN_FILE
from diptych_serving.repository.layout import (
    ENSEMBLE,
    STEPS,
    describe_label_change,
    held_versions,
    loaded_versions,
    prune,
    read_activations,
    serving_version,
    write_activations,
    write_loaded,
    write_pins,
)
from diptych_serving.repository.lock import only_one
from diptych_serving.repository.verification import verify_version

# A version that is still in use after it is not pruned; the next release sees to it.
UNLOAD_TIMEOUT_S = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """What was done: from which version to which, how near the golden answers came, what was deleted.

    new_labels  how the labels differ from those before, in words; None where they do not
    undone      what an earlier, interrupted command had left, and that it was undone; None: nothing
    """

    before: int
    version: int
    golden_difference: float
    pruned: list[int]
    new_labels: str | None = None
    undone: str | None = None


class Server(Loader, Protocol):
    """What an activation needs of a running server."""

    def loaded(self) -> set[tuple[str, int]]:
        """(model, version) pairs that are ready. Raises UserError."""

    def ask(self, version: int, image: bytes, text: bytes) -> NDArray[np.float32]:
        """Probabilities (C,) of one item from one version, past the ensemble. Raises UserError."""


def activate(
    repository: Path,
    version: int,
    *servers: Server,
    keep: int | None = None,
    allow_new_labels: bool = False,
    public_key: Path | None = None,
) -> Activation:
    """Stage every step's version on the servers, prove it, then switch the ensemble, which is atomic in each.

    The version that served stays loaded, for a rollback at once; older ones are unloaded.
    servers           those that serve this repository; none: the next one that starts serves the version
    keep              delete all but this many of the newest versions afterwards
    allow_new_labels  accept a version whose labels are not those of the one that serves
    public_key        of the signature that the version's manifest must bear; None: none is required
    raises            UserError with the reason; the old version still serves, the repository is as it was
    """
    with only_one(repository):
        undone = undo_pending(repository, servers)
        before, loaded = serving_version(repository), loaded_versions(repository)
        new_labels = _prove_files(repository, before, version, allow_new_labels, public_key)
        served = [_served(server, repository, before, version) for server in servers]
        with undone_on_failure(repository, "activate", version, servers):
            write_loaded(repository, {*loaded, *served, version})
            difference = _prove_answers(repository, version, servers)
            write_pins(repository, version)
            if version != before:
                write_activations(repository, [*read_activations(repository), before])
            for server in servers:
                _switch(server, version)
        try:
            kept = {before, version} if version != before else {*loaded, version}
            if kept != set(loaded_versions(repository)):
                write_loaded(repository, kept)
                for server in servers:
                    load_steps(server)
            in_use = _loaded_after_unloading(servers, kept) if keep else ()
            pruned = prune(repository, keep, in_use) if keep else []
        except UserError as error:
            raise UserError(
                f"version {version} serves, but older ones could not be removed: {error}"
            ) from None
    return Activation(
        before=before,
        version=version,
        golden_difference=difference,
        pruned=pruned,
        new_labels=new_labels,
        undone=undone,
    )


def undo_interrupted_command(repository: Path, servers: Sequence[Loader]) -> str | None:
    """Undo what an earlier command left unfinished, and nothing else. Returns what it was, in words."""
    with only_one(repository):
        return undo_pending(repository, servers)


def load_steps(server: Loader) -> None:
    """Let the server load and unload what each step's config says now."""
    for step in STEPS:
        server.load(step)


def require_same_repository(repository: Path, server: Loader) -> None:
    """The server serves the version that the repository names. Raises UserError where it does not."""
    serving = serving_version(repository)
    _served(server, repository, serving, None)


def _served(server: Loader, repository: Path, serving: int, wanted: int | None) -> int:
    """The version that a server answers with: the repository's, unless it is to be brought there.

    Several servers may share a repository, and a release may have told only some of them.
    """
    served = server.serving_version()
    if served == serving or (served in held_versions(repository) and serving == wanted):
        return served
    raise UserError(
        f"{server.url} serves version {served or 'none'}, {repository} says {serving}: "
        + (
            "a release told another server alone. Bring this one along first: "
            f"diptych release activate {repository} {serving} --server {server.url}"
            if served in held_versions(repository)
            else "is that server's repository another one?"
        )
    )


def _prove_files(
    repository: Path, before: int, version: int, allow_new_labels: bool, public_key: Path | None
) -> str | None:
    verify_version(repository, version, public_key)
    change = describe_label_change(repository, before, version)
    if change and not allow_new_labels:
        raise UserError(
            f"{repository}: version {version} has other labels than version {before}, which serves: "
            f"it {change}. Callers depend on names and order. Where they are ready for it: --allow-new-labels"
        )
    return change


def _prove_answers(repository: Path, version: int, servers: Sequence[Server]) -> float:
    """The largest difference of a golden answer, asked of each server; without one, of the files in here."""
    path = repository / ENSEMBLE / str(version) / GOLDEN_FILE
    if not servers:
        from diptych_serving.release.in_process import ask_files  # and with it torch

        return golden.replay(path, ask_files(repository, version))
    differences = []
    for server in servers:
        load_steps(server)
        _require_loaded(server, repository, version)
        differences.append(
            golden.replay(path, lambda image, text, server=server: server.ask(version, image, text))  # type: ignore[misc]
        )
    return max(differences)


def _require_loaded(server: Server, repository: Path, version: int) -> None:
    loaded = server.loaded()
    if missing := [step for step in STEPS if (step, version) not in loaded]:
        raise UserError(
            f"{server.url}: was told to load version {version} of {missing[0]} and did not: it does not read "
            f"the configs in {repository}. It has a repository of its own; or it is a `diptych serve "
            "--tuning` of another user or machine, which serves a copy. Run this there, or start it again"
        )


def _switch(server: Loader, version: int) -> None:
    server.load(ENSEMBLE)
    if server.serving_version() != version:
        raise UserError(f"{server.url}: was told to serve version {version} and does not")


def _loaded_after_unloading(servers: Sequence[Server], expected: Collection[int]) -> set[int]:
    """What the servers hold, once they have let go of the rest: that ends in the background."""
    give_up_at_s = time.monotonic() + UNLOAD_TIMEOUT_S
    while not (loaded := _loaded(servers)) <= set(expected) and time.monotonic() < give_up_at_s:
        time.sleep(0.1)
    return loaded


def _loaded(servers: Sequence[Server]) -> set[int]:
    models = (ENSEMBLE, *STEPS)
    return {version for server in servers for model, version in server.loaded() if model in models}
