"""Switches a running server to another version, or leaves everything unchanged."""

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

# A version that is still in use after this is not deleted; the next release tries again.
UNLOAD_TIMEOUT_S = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """The result: old and new version, largest difference of a golden answer, deleted versions.

    new_labels  how the labels differ from the previous ones, as text; None if they do not
    undone      the interrupted command that was undone first, as text; None: nothing
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
        """Probabilities (C,) of one item from one version, without the ensemble. Raises UserError."""


def activate(
    repository: Path,
    version: int,
    *servers: Server,
    keep: int | None = None,
    allow_new_labels: bool = False,
    public_key: Path | None = None,
) -> Activation:
    """Load every step's version on the servers, check it, then switch the ensemble, which is atomic in each.

    The previous version stays loaded, for a quick rollback; older ones are unloaded.
    servers           the servers of this repository; none: the next one that starts serves the version
    keep              afterwards keep only this number of the newest versions
    allow_new_labels  accept a version whose labels are not those of the one that serves
    public_key        file with the key of the manifest's required signature; None: none is required
    raises            UserError with the reason; the old version still serves, the repository is unchanged
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
    """Only undo an interrupted command. Returns a description of it."""
    with only_one(repository):
        return undo_pending(repository, servers)


def load_steps(server: Loader) -> None:
    """Let the server load and unload the versions that each step's config names now."""
    for step in STEPS:
        server.load(step)


def require_same_repository(repository: Path, server: Loader) -> None:
    """Check that the server serves the version that the repository names. Raises UserError if not."""
    serving = serving_version(repository)
    _served(server, repository, serving, None)


def _served(server: Loader, repository: Path, serving: int, wanted: int | None) -> int:
    """The version that a server answers with. Raises UserError if it is not the expected one.

    Several servers may share a repository, and a release may have changed only some of them.
    """
    served = server.serving_version()
    if served == serving or (served in held_versions(repository) and serving == wanted):
        return served
    raise UserError(
        f"{server.url} serves version {served or 'none'}, {repository} says {serving}: "
        + (
            "a release changed only another server. Update this one first: "
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
            f"it {change}. Callers depend on names and order. If they are ready for it: --allow-new-labels"
        )
    return change


def _prove_answers(repository: Path, version: int, servers: Sequence[Server]) -> float:
    """The largest difference of a golden answer on each server; without a server, in this process."""
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
            f"{server.url}: did not load version {version} of {missing[0]}, because it does not read "
            f"the configs in {repository}. It has another repository, or it is a `diptych serve "
            "--tuning` of another user or machine, which serves a copy. Run this there, or restart it"
        )


def _switch(server: Loader, version: int) -> None:
    server.load(ENSEMBLE)
    if server.serving_version() != version:
        raise UserError(f"{server.url}: should now serve version {version} and does not")


def _loaded_after_unloading(servers: Sequence[Server], expected: Collection[int]) -> set[int]:
    """The versions that the servers hold, after they have unloaded the others in the background."""
    give_up_at_s = time.monotonic() + UNLOAD_TIMEOUT_S
    while not (loaded := _loaded(servers)) <= set(expected) and time.monotonic() < give_up_at_s:
        time.sleep(0.1)
    return loaded


def _loaded(servers: Sequence[Server]) -> set[int]:
    models = (ENSEMBLE, *STEPS)
    return {version for server in servers for model, version in server.loaded() if model in models}
