"""Asks a version that does not serve yet the same as the one that does, on a running server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.comparison import Comparison, Side
from diptych.data.catalogue import read_catalogue
from diptych.data.items import Item
from diptych.errors import UserError
from diptych.preprocessing import Preprocessor
from diptych.progress import wait_for
from diptych.release.activation import load_steps, require_same_repository
from diptych.release.control import Control, Refused
from diptych.release.lock import only_one
from diptych.release.repository import (
    STEPS,
    loaded_versions,
    read_manifest,
    serving_version,
    write_loaded,
)
from diptych.release.undo import undo_pending, undone_at_the_end
from diptych.serving.verification import verify_version

Ask = Callable[[int, bytes, bytes], NDArray[np.float32]]


def shadow(
    repository: Path,
    version: int,
    control: Control,
    catalogue: Path,
    *,
    concurrency: int,
    skip_bad_rows: bool = False,
    public_key: Path | None = None,
    on_undone: Callable[[str], object] = lambda _: None,
) -> Comparison:
    """Load the version's steps beside those that serve, ask both about every item, unload them again.

    The ensemble still serves what it served, and the configs are in the end what they were, whatever happens
    in between. Callers share the server with the items meanwhile, and wait longer.

    concurrency    how many items are asked about at once
    skip_bad_rows  leave rows out that are no items, instead of stopping before anything is loaded
    public_key     of the signature that the version's manifest must bear; None: none is required
    on_undone      is told of an earlier, interrupted command that was undone first
    raises         UserError with the reason
    """
    items = read_catalogue(
        catalogue,
        labels=None,
        needs_category=False,
        preprocessors=[preprocessor_of(repository, version)],
        skip_bad_rows=skip_bad_rows,
        check_images=False,  # what a version refuses is part of the comparison
    )
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
    return Comparison(items=items, old=old, new=new)


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
