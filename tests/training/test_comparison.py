"""Two models' answers side by side: what counts, what comes first, what the page shows."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diptych.analysis.comparison.asking import compare_runs
from diptych.analysis.comparison.page import write_comparison
from diptych.analysis.comparison.result import REFUSED, Comparison, Side, summarize
from diptych.cli.main import app
from diptych.data.items import Item
from diptych.evaluation.predict import predict
from diptych.location import Location
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from tests.helpers.catalogues import make_catalogue, write_catalogue


def side(name: str, labels: Sequence[str], rows: Sequence[Sequence[float]], **refusals: str) -> Side:
    refused = {int(key.removeprefix("item")): reason for key, reason in refusals.items()}
    return Side(name=name, labels=labels, probabilities=np.array(rows, np.float32), refusals=refused)


def items(*categories: str) -> list[Item]:
    table = Location("items.csv")
    return [
        Item(table=table, line=line, image=None, text=f"<item {line}>", category=category)
        for line, category in enumerate(categories, start=2)
    ]


@pytest.fixture
def comparison() -> Comparison:
    """By item: both right; lost narrowly; lost with certainty; won; both wrong; unknown and different."""
    return Comparison(
        items=items("cat", "cat", "cat", "dog", "dog", ""),
        old=side("old", ["cat", "dog"], [[0.9, 0.1], [0.6, 0.4], [1, 0], [0.7, 0.3], [0.8, 0.2], [0.2, 0.8]]),
        new=side("new", ["dog", "cat"], [[0.1, 0.9], [0.6, 0.4], [1, 0], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]),
    )


def test_labels_are_compared_by_name_whatever_their_order(comparison: Comparison) -> None:
    assert comparison.old.answers == ["cat", "cat", "cat", "cat", "cat", "dog"]
    assert comparison.new.answers == ["cat", "dog", "dog", "dog", "cat", "cat"]
    assert comparison.is_same.tolist() == [True, False, False, False, True, False]


def test_accuracy_counts_the_items_whose_category_is_known(comparison: Comparison) -> None:
    assert comparison.accuracy(comparison.old) == pytest.approx(3 / 5)
    assert comparison.accuracy(comparison.new) == pytest.approx(2 / 5)
    unknown = dataclasses.replace(comparison, items=items(*6 * [""]))
    assert unknown.accuracy(unknown.new) is None
    assert unknown.chance is None
    assert unknown.undecided == [2, 3, 5, 1]


def test_sure_answers_that_contradict_each_other_come_first(comparison: Comparison) -> None:
    assert comparison.lost == [2, 1]
    assert comparison.won == [3]
    assert comparison.undecided == [5]


def test_chance_is_the_sign_test_on_items_that_one_side_alone_has_right(comparison: Comparison) -> None:
    assert comparison.chance == pytest.approx(1.0)  # one to two
    rows = 9 * [[1.0, 0.0]]
    lopsided = Comparison(
        items=items(*9 * ["cat"]),
        old=side("old", ["cat", "dog"], rows),
        new=side("new", ["dog", "cat"], rows),
    )
    assert lopsided.chance == pytest.approx(2 * 0.5**9)


def test_a_refusal_is_an_answer_of_its_own_and_never_right() -> None:
    nan = float("nan")
    refusing = Comparison(
        items=items("cat", "cat"),
        old=side("old", ["cat", "dog"], [[0.6, 0.4], [0.9, 0.1]]),
        new=side("new", ["cat", "dog"], [[nan, nan], [0.2, 0.8]], item0="too large"),
    )
    assert refusing.new.answers == [REFUSED, "dog"]
    assert refusing.lost == [0, 1]
    assert refusing.accuracy(refusing.new) == 0
    assert "refused 1" in summarize(refusing)


def test_a_label_that_one_side_does_not_know_has_no_probability_there() -> None:
    comparison = Comparison(
        items=items("fox"), old=side("old", ["cat"], [[1.0]]), new=side("new", ["cat", "fox"], [[0.3, 0.7]])
    )
    assert comparison.old.probability(0, "fox") == 0
    assert comparison.won == [0]


def shifted(run: Run) -> Run:
    """The same run, which gives every item its first label."""
    model = copy.deepcopy(run.model)
    model.fusion_head.classifier.bias.data[0] += 30.0
    return dataclasses.replace(run, model=model, directory=run.directory.with_name("shifted"))


def test_runs_are_asked_about_the_test_set_of_the_first(tiny_run: Run) -> None:
    other = shifted(tiny_run)
    comparison = compare_runs(tiny_run, other)
    assert len(comparison.items) == 36
    assert (comparison.old.name, comparison.new.name) == ("tiny_run", "shifted")
    assert comparison.moves
    assert {new for _, new, _ in comparison.moves} == {"cold"}
    item = comparison.items[5]
    expected = predict(other, item.read_image(), item.text)
    assert {label: comparison.new.probability(5, label) for label in other.labels} == pytest.approx(
        expected, abs=1e-5
    )


def test_a_run_is_the_same_as_itself(tiny_run: Run) -> None:
    comparison = compare_runs(tiny_run, tiny_run)
    assert comparison.is_same.all()
    assert comparison.moves == comparison.lost == comparison.won == comparison.undecided == []
    assert comparison.old.name == str(tiny_run.directory)


def test_a_catalogue_may_lack_categories_but_not_items(tiny_run: Run, tmp_path: Path) -> None:
    table = write_catalogue(tmp_path / "items.csv", [("", "a lake", ""), ("", "", "")])
    with pytest.raises(UserError, match="line 3: neither image nor text"):
        compare_runs(tiny_run, shifted(tiny_run), table)
    comparison = compare_runs(tiny_run, shifted(tiny_run), table, skip_bad_rows=True)
    assert [item.text for item in comparison.items] == ["a lake"]
    assert not comparison.has_truth.any()


def test_the_page_shows_every_kind_of_disagreement_and_loads_nothing(tiny_run: Run, tmp_path: Path) -> None:
    table = make_catalogue(tmp_path / "items", 30, first_seed=3000)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    wrong = {"cold": "warm", "warm": "green", "green": "cold"}
    rows = [(a, f"{b} <b>&", {0: "", 1: wrong[c]}.get(n % 5, c)) for n, (a, b, c) in enumerate(rows)]
    comparison = compare_runs(tiny_run, shifted(tiny_run), write_catalogue(table, rows))
    page = tmp_path / "page.html"
    write_comparison(
        comparison,
        page,
        tiny_run.preprocessor.spec,
        title="tiny, then <shifted>",
        notes={"items": str(table)},
    )
    text = page.read_text("utf-8")
    for kind, found in (
        ("lost", comparison.lost),
        ("won", comparison.won),
        ("undecided", comparison.undecided),
    ):
        assert found, kind
        assert f'<section id="{kind}">' in text
    assert text.count('class="card"') == sum(
        map(len, (comparison.lost, comparison.won, comparison.undecided))
    )
    assert "data:image/jpeg;base64," in text
    assert "tiny, then &lt;shifted&gt;" in text
    assert "&lt;b&gt;&amp;" in text
    resources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)["']|url\(([^)]*)\)""", text)
    assert all((attribute or url).startswith(("data:", "#")) for attribute, url in resources)
    assert "<script" not in text


def test_the_page_says_what_changed_about_labels_and_what_was_refused(
    comparison: Comparison, tmp_path
) -> None:
    from diptych_serving.preprocessing import PreprocessingSpec

    nan = float("nan")
    other = side("new", ["dog", "fox"], [[nan, nan], *5 * [[0.3, 0.7]]], item0="more pixels than accepted")
    page = tmp_path / "page.html"
    spec = PreprocessingSpec(image_size_px=32, max_tokens=8)
    write_comparison(dataclasses.replace(comparison, new=other), page, spec, title="old and new", notes={})
    text = " ".join(page.read_text("utf-8").split())
    assert "new adds fox. new no longer knows cat." in text
    assert "more pixels than accepted" in text
    assert "items.csv: line 2" in text


def test_the_command_says_who_is_right_more_often_and_where_the_page_is(
    tiny_run: Run, tmp_path: Path
) -> None:
    other = shifted(tiny_run)
    other = dataclasses.replace(other, directory=tmp_path / "shifted")
    other.save()
    page = tmp_path / "page.html"
    arguments = ["compare", str(tiny_run.directory), str(other.directory), "--out", str(page)]
    answered = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert re.search(r"36 items, the same label for \d+ \(\d+\.\d%\)", answered.output)
    assert re.search(
        r"right in shifted alone: \d+, in tiny_run alone: \d+ \(p = .*, exact McNemar\)", answered.output
    )
    assert "<h1>tiny_run and shifted</h1>" in page.read_text("utf-8")
