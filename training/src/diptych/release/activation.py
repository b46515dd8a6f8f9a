"""Moves a running server from one version to another, or leaves everything as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from diptych.errors import UserError
from diptych.release import golden
from diptych.release.asking import ask_files
from diptych.release.control import Control
from diptych.release.golden import GOLDEN_FILE
from diptych.release.lock import only_one
from diptych.release.repository import (
    ENSEMBLE,
    STEPS,
    config_of,
    describe_label_change,
    loaded_versions,
    prune,
    record_activation,
    replace_text,
    serving_version,
    write_loaded,
    write_pins,
)
from diptych.serving.verification import verify_version

# A version that is still in use after it is not pruned; the next release sees to it.
UNLOAD_TIMEOUT_S = 15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """What was done: from which version to which, how near the golden answers came, what was deleted.

    new_labels  how the labels differ from those before, in words; None where they do not
    """

    before: int
    version: int
    golden_difference: float
    pruned: list[int]
    new_labels: str | None = None


def activate(
    repository: Path,
    version: int,
    control: Control,
    keep: int | None = None,
    *,
    allow_new_labels: bool = False,
    public_key: Path | None = None,
) -> Activation:
    """Stage every step's version on the server, prove it, then switch the ensemble, which is atomic.

    The version that served stays loaded, for a rollback at once; older ones are unloaded.
    keep              delete all but so many of the newest versions afterwards
    allow_new_labels  let a version serve whose labels are not those of the one that serves
    public_key        of the signature that the version's manifest must bear; None: none need be there
    raises            UserError with the reason; the old version serves on, the repository is as it was
    """
    with only_one(repository):
        before = serving_version(repository)
        new_labels = _prove_files(repository, before, version, allow_new_labels, public_key)
        require_same_repository(repository, control)
        with _undone_on_failure(repository, control):
            write_loaded(repository, {*loaded_versions(repository), version})
            load_steps(control)
            difference = golden.replay(
                _golden(repository, version), lambda image, text: control.ask(version, image, text)
            )
            write_pins(repository, version)
            control.load(ENSEMBLE)
            if control.serving_version() != version:
                raise UserError(f"{control.url}: was told to serve version {version} and does not")
        if {before, version} != set(loaded_versions(repository)):
            write_loaded(repository, {before, version})
            load_steps(control)
        in_use = _loaded_after_unloading(control, {before, version}) if keep else ()
        pruned = _finish(repository, before, version, keep, in_use)
    return Activation(
        before=before, version=version, golden_difference=difference, pruned=pruned, new_labels=new_labels
    )


def activate_files(
    repository: Path,
    version: int,
    keep: int | None = None,
    *,
    allow_new_labels: bool = False,
    public_key: Path | None = None,
) -> Activation:
    """The same for a repository that no server has open: the next one that starts serves this version."""
    with only_one(repository):
        before = serving_version(repository)
        new_labels = _prove_files(repository, before, version, allow_new_labels, public_key)
        difference = golden.replay(_golden(repository, version), ask_files(repository, version))
        write_loaded(repository, {before, version})
        write_pins(repository, version)
        pruned = _finish(repository, before, version, keep)
    return Activation(
        before=before, version=version, golden_difference=difference, pruned=pruned, new_labels=new_labels
    )


def _loaded_after_unloading(control: Control, expected: Collection[int]) -> set[int]:
    """What the server holds, once it has let go of the rest: that ends in the background."""
    give_up_at_s = time.monotonic() + UNLOAD_TIMEOUT_S
    while not (loaded := control.loaded_versions()) <= set(expected) and time.monotonic() < give_up_at_s:
        time.sleep(0.1)
    return loaded


def require_same_repository(repository: Path, control: Control) -> None:
    """The server serves the version that the repository names. Raises UserError where it does not."""
    serving, served = serving_version(repository), control.serving_version()
    if served != serving:
        raise UserError(
            f"{control.url} serves version {served}, {repository} says {serving}: "
            "is that server's repository another one?"
        )


def load_steps(control: Control) -> None:
    """Let the server load and unload what each step's config says now."""
    for step in STEPS:
        control.load(step)


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


def _golden(repository: Path, version: int) -> Path:
    return repository / ENSEMBLE / str(version) / GOLDEN_FILE


def _finish(
    repository: Path, before: int, version: int, keep: int | None, in_use: Collection[int] = ()
) -> list[int]:
    if version != before:
        record_activation(repository, before)
    return prune(repository, keep, in_use) if keep else []


@contextlib.contextmanager
def _undone_on_failure(repository: Path, control: Control) -> Iterator[None]:
    configs = {model: config_of(repository, model).read_text("utf-8") for model in (ENSEMBLE, *STEPS)}
    try:
        yield
    except BaseException:
        # The ensemble first: no step's version may go while it is pinned.
        for model, text in configs.items():
            if config_of(repository, model).read_text("utf-8") != text:
                replace_text(config_of(repository, model), text)
                control.load(model)
        raise
