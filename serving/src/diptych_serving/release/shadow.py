"""Sends the same items to the serving version and to another one, on a running server."""

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

AskVersion = Callable[[int, bytes, bytes], NDArray[np.float32]]


class Item(Protocol):
    """A row of a table."""

    @property
    def text(self) -> str: ...

    def read_image(self) -> bytes:
        """The image file; empty if the item has none."""


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
    """Load the version's steps beside the serving ones, send every item to both, unload the steps again.

    The serving version does not change, and the configs are restored at the end, also after an error. Callers
    share the server with these requests and wait longer.

    concurrency  number of items in flight
    public_key   file with the key of the manifest's required signature; None: none is required
    on_undone    receives the description of an interrupted command that was undone first
    returns      the answers of the serving version, and of the other
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
    """A version's labels. Raises UserError if the repository does not hold the version."""
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


def _ask_all(
    repository: Path, version: int, ask: AskVersion, items: Sequence[Item], concurrency: int
) -> Side:
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
