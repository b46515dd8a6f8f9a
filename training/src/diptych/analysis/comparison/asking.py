"""Compares two models on the same items: two runs in this process, or two versions on a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diptych.analysis.comparison.result import Comparison, Side
from diptych.data.catalogue import read_catalogue
from diptych.data.embedding_cache import embed_items_once
from diptych.data.items import Item
from diptych.evaluation.predict import predict_probabilities
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from diptych_serving.release.control import Control
from diptych_serving.release.shadow import preprocessor_of, shadow


def compare_runs(
    old: Run, new: Run, catalogue: Path | None = None, *, skip_bad_rows: bool = False
) -> Comparison:
    """Ask both about every item.

    catalogue  a table of items, with or without categories; None: the test set of `old`
    raises     UserError for rows that a run refuses, unless they are skipped
    """
    data = old.config.data
    table = catalogue or data.test_csv
    if table is None:
        raise UserError(f"{old.directory}: has no data.test_csv; name a table with --catalogue")
    items = read_catalogue(
        table,
        labels=None,
        needs_category=False,
        preprocessors=[old.preprocessor, new.preprocessor],
        skip_bad_rows=skip_bad_rows or data.skip_bad_rows,
        check_images=data.check_images,
    )
    has_one_name = old.directory.name == new.directory.name
    old_side, new_side = (
        _ask(run, items, str(run.directory) if has_one_name else run.directory.name) for run in (old, new)
    )
    return Comparison(items=items, old=old_side, new=new_side)


def compare_versions(
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
    """Send every item to a running server's version and to another one, with `shadow`.

    skip_bad_rows  leave unusable rows out, instead of stopping before anything is loaded
    raises         UserError
    """
    items = read_catalogue(
        catalogue,
        labels=None,
        needs_category=False,
        preprocessors=[preprocessor_of(repository, version)],
        skip_bad_rows=skip_bad_rows,
        check_images=False,  # refused items are part of the comparison
    )
    old, new = shadow(
        repository,
        version,
        control,
        items,
        concurrency=concurrency,
        public_key=public_key,
        on_undone=on_undone,
    )
    return Comparison(items=items, old=old, new=new)


def _ask(run: Run, items: list[Item], name: str) -> Side:
    num_workers = run.config.train.num_workers
    embeddings = embed_items_once(
        run.model, items, run.preprocessor, title=f"items for {name}", num_workers=num_workers
    )
    return Side(name=name, labels=run.labels, probabilities=predict_probabilities(run.model, embeddings))
