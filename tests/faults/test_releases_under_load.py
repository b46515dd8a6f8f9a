"""Activations and rollbacks under load, as `python -m bench.release_show` shows them at length."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from bench.release_show.chart import draw_show
from bench.release_show.show import run_show
from bench.release_show.versions import expect, find_strays
from diptych_client import Client
from diptych_serving.traffic import Call
from tests.helpers.raw_wire import Item

THINK_S = 0.05  # leaves the loading of models some of two cores


def test_under_load_every_answer_belongs_to_the_version_it_names(
    releases: Path, items: list[Item], tmp_path: Path
) -> None:
    repository = shutil.copytree(releases, tmp_path / "model_repository")
    asked = [(image, text.decode()) for image, text in items]
    show = run_show(repository, asked, think_s=THINK_S, tolerance=1e-5)
    assert show.failures == []
    assert show.strays == []
    assert [event.outcome for event in show.events if not event.is_as_promised] == []
    assert len(show.events) == 6
    assert show.is_as_promised
    draw_show(show, tmp_path / "show.png")
    assert (tmp_path / "show.png").stat().st_size > 10_000


def test_the_show_notices_what_it_is_there_for(releases: Path, items: list[Item]) -> None:
    """Answers of the other version, of other labels, and of a version that never served are strays."""
    image, text = items[0][0], items[0][1].decode()
    expected = expect(releases, (1, 2), [(image, text)])
    with Client(f"local:{releases}", timeout_s=60) as client:
        first = client.classify(image=image, text=text)
    good = first.probabilities

    def answered(version: int, probabilities: Mapping[str, float]) -> Call:
        result = dataclasses.replace(first, model_version=str(version), probabilities=probabilities)
        return Call(item=0, start_s=0.0, end_s=0.0, outcome="Answer", is_answered=True, result=result)

    answer = answered(1, good)
    assert find_strays([answer], expected, 1e-5) == []
    reordered = dict(reversed(good.items()))
    strays = [answered(2, good), answered(3, good), answered(1, reordered)]
    assert find_strays([answer, *strays], expected, 1e-5) == strays
