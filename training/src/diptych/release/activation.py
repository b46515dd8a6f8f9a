"""Moves a running server from one version to another, or leaves everything as it was."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from diptych.errors import UserError
from diptych.release import golden
from diptych.release.asking import ask_files
from diptych.release.control import Control
from diptych.release.golden import GOLDEN_FILE
from diptych.release.repository import (
    ENSEMBLE,
    STEPS,
    config_of,
    loaded_versions,
    prune,
    read_manifest,
    record_activation,
    replace_text,
    serving_version,
    verify_checksums,
    write_loaded,
    write_pins,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """What was done: from which version to which, how near the golden answers came, what was deleted."""

    before: int
    version: int
    golden_difference: float
    pruned: list[int]


def activate(repository: Path, version: int, control: Control, keep: int | None = None) -> Activation:
    """Stage every step's version on the server, prove it, then switch the ensemble, which is atomic.

    The version that served stays loaded, for a rollback at once; older ones are unloaded.
    keep    delete all but so many of the newest versions afterwards
    raises  UserError with the reason; the old version then serves on and the repository is as it was
    """
    before = serving_version(repository)
    verify_checksums(repository, read_manifest(repository, version))
    if control.serving_version() != before:
        raise UserError(
            f"{control.url} serves version {control.serving_version()}, {repository} says {before}: "
            "is that server's repository another one?"
        )
    with _undone_on_failure(repository, control):
        write_loaded(repository, {*loaded_versions(repository), version})
        for step in STEPS:
            control.load(step)
        difference = golden.replay(
            _golden(repository, version), lambda image, text: control.ask(version, image, text)
        )
        write_pins(repository, version)
        control.load(ENSEMBLE)
        if control.serving_version() != version:
            raise UserError(f"{control.url}: was told to serve version {version} and does not")
    if {before, version} != set(loaded_versions(repository)):
        write_loaded(repository, {before, version})
        for step in STEPS:
            control.load(step)
    return _finish(repository, before, version, difference, keep)


def activate_files(repository: Path, version: int, keep: int | None = None) -> Activation:
    """The same for a repository that no server has open: the next one that starts serves this version."""
    before = serving_version(repository)
    verify_checksums(repository, read_manifest(repository, version))
    difference = golden.replay(_golden(repository, version), ask_files(repository, version))
    write_loaded(repository, {before, version})
    write_pins(repository, version)
    return _finish(repository, before, version, difference, keep)


def _golden(repository: Path, version: int) -> Path:
    return repository / ENSEMBLE / str(version) / GOLDEN_FILE


def _finish(repository: Path, before: int, version: int, difference: float, keep: int | None) -> Activation:
    if version != before:
        record_activation(repository, before)
    return Activation(
        before=before,
        version=version,
        golden_difference=difference,
        pruned=prune(repository, keep) if keep else [],
    )


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
