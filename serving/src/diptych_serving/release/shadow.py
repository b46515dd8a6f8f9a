"""Asks a version that does not serve yet the same as the one that does, on a running server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Preprocessor
from diptych_serving.progress import wait_for
from diptych_serving.release.activation import load_steps, require_same_repository
from diptych_serving.release.answers import Side
from diptych_serving.release.control import Control, Refused
from diptych_serving.release.undo import undo_pending, undone_at_the_end
from diptych_serving.repository.layout import (
    STEPS,
    loaded_versions,
    read_manifest,
    serving_version,
    write_loaded,
)
from diptych_serving.repository.lock import only_one
from diptych_serving.repository.verification import verify_version

Ask = Callable[[int, bytes, bytes], NDArray[np.float32]]


class Item(Protocol):
    """A row of a table."""

    @property
    def text(self) -> str: ...

    def read_image(self) -> bytes:
        """The image file; empty where the item has none."""


def shadow(
    repository: Path,
    version: int,
    control: Control,
    items: Sequence[Item],
    *,
    concurrency: int,
    public_key: Path | None = None,
    on_undone: Callable[[str], object] = lambda _: None,
) -> tuple[Side, Side]:
    """Load the version's steps beside those that serve, ask both about every item, unload them again.

    The ensemble still serves what it served, and the configs are in the end what they were, whatever happens
    in between. Callers share the server with the items meanwhile, and wait longer.

    concurrency  how many items are asked about at once
    public_key   of the signature that the version's manifest must bear; None: none is required
    on_undone    is told of an earlier, interrupted command that was undone first
    returns      the answers of the version that serves, and of the other
    raises       UserError with the reason
    """
    with only_one(repository):
        if undone := undo_pending(repository, [control]):
            on_undone(undone)
        serving = serving_version(repository)
        if version == serving:
            raise UserError(f"{repository}: version {version} serves already; name another")
        verify_version(repository, version, public_key)
        require_same_repository(repository, control)
        with _loaded_beside(repository, version, control):
            old = _ask_all(repository, serving, control.ask_ensemble, items, concurrency)
            new = _ask_all(repository, version, control.ask, items, concurrency)
    return old, new


def preprocessor_of(repository: Path, version: int) -> Preprocessor:
    """A version's. Raises UserError where the repository does not hold it."""
    read_manifest(repository, version)
    return Preprocessor.load(repository / STEPS[0] / str(version))


@contextlib.contextmanager
def _loaded_beside(repository: Path, version: int, control: Control) -> Iterator[None]:
    before = loaded_versions(repository)
    if version in before:
        yield
        return
    with undone_at_the_end(repository, "shadow", version, [control]):
        write_loaded(repository, {*before, version})
        load_steps(control)
        yield


def _ask_all(repository: Path, version: int, ask: Ask, items: Sequence[Item], concurrency: int) -> Side:
    labels = read_manifest(repository, version)["labels"]
    probabilities = np.full((len(items), len(labels)), np.nan, dtype=np.float32)
    refusals: dict[int, str] = {}

    def ask_one(index: int) -> None:
        item = items[index]
        try:
            answer = ask(version, item.read_image(), item.text.encode())
        except Refused as error:
            refusals[index] = str(error)
            return
        if len(answer) != len(labels):
            raise UserError(f"version {version}: {len(answer)} probabilities for {len(labels)} labels")
        probabilities[index] = answer

    with ThreadPoolExecutor(concurrency) as pool:
        wait_for([pool.submit(ask_one, index) for index in range(len(items))], f"Asking version {version}")
    return Side(
        name=f"version {version}",
        labels=labels,
        probabilities=probabilities,
        refusals=dict(sorted(refusals.items())),
    )
