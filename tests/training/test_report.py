"""The report of a tiny run: whole, self-contained, and with the numbers of metrics.json."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from diptych.config.loader import load_config
from diptych.evaluation.evaluate import answer_test_set, evaluate
from diptych.evaluation.report.mistakes import find_mistakes
from diptych.evaluation.report.sections import describe_cost, describe_missing
from diptych.runs.run import Run, load_run, save_config
from tests.helpers.catalogues import make_catalogue, write_catalogue

SECTIONS = ("scores", "categories", "confidence", "missing", "mistakes", "training", "config")


@pytest.fixture(scope="session")
def page(tiny_run: Run) -> str:
    return (tiny_run.directory / "report.html").read_text("utf-8")


def copy_run(run: Run, directory: Path, test_csv: Path | None = None) -> Run:
    """The same model, to be evaluated elsewhere or on other items."""
    shutil.copytree(run.directory, directory)
    if test_csv:
        save_config(
            load_config(directory / "config.toml", [f"data.test_csv={test_csv}"]), directory / "config.toml"
        )
    return load_run(directory)


def test_every_section_is_there(page: str) -> None:
    assert tuple(re.findall(r'<section id="(\w+)"', page)) == SECTIONS
    assert all(f'href="#{name}"' in page for name in SECTIONS)
    assert page.count("<svg") == 4


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    resources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)["']|url\(([^)]*)\)""", page)
    assert resources
    assert all((attribute or url).startswith(("data:", "#")) for attribute, url in resources)
    assert not re.search(r"https?://", page)
    assert "<script" not in page


def test_its_scores_are_those_of_metrics_json(tiny_run: Run, page: str) -> None:
    test = json.loads((tiny_run.directory / "metrics.json").read_text())["test"]
    shown = dict(re.findall(r'data-metric="([\w.]+)">([\d.,]+)', page))
    for condition, scores in test.items():
        for name in ("accuracy", "macro_f1", "ece"):
            assert shown[f"{condition}.{name}"] == f"{scores[name]:.3f}"
        assert shown[f"{condition}.num_items"] == str(scores["num_items"])
    assert len(shown) == 12


def test_the_missing_curves_end_at_the_scores(tiny_run: Run) -> None:
    test = json.loads((tiny_run.directory / "metrics.json").read_text())["test"]
    missing = describe_missing(answer_test_set(tiny_run))
    assert missing
    (_, *start), *_, (_, without_pictures, without_words) = missing["rows"]
    assert start == [pytest.approx(test["both"]["accuracy"], abs=1e-6)] * 2
    assert without_pictures == pytest.approx(test["text_only"]["accuracy"], abs=1e-6)
    assert without_words == pytest.approx(test["image_only"]["accuracy"], abs=1e-6)


def test_ids_are_unique_across_figures(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_two_evaluations_give_the_same_page(tiny_run: Run, tmp_path: Path, page: str) -> None:
    run = copy_run(tiny_run, tmp_path / tiny_run.directory.name)
    evaluate(run)
    again = (run.directory / "report.html").read_text("utf-8")
    assert again.split("<footer>", maxsplit=1)[0] == page.split("<footer>", maxsplit=1)[0]


def test_a_run_without_history_or_training_figures_is_still_reported(tiny_run: Run, tmp_path: Path) -> None:
    run = copy_run(tiny_run, tmp_path / "bare")
    (run.directory / "history.json").unlink()
    (run.directory / "metrics.json").unlink()
    evaluate(run)
    text = (run.directory / "report.html").read_text("utf-8")
    assert "no history.json" in text
    assert text.count("<svg") == 3


def test_items_that_all_lack_one_modality_are_reported(tiny_run: Run, tmp_path: Path) -> None:
    table = write_catalogue(tmp_path / "words.csv", [("", "a lake", "cold"), ("", "a fire", "warm")])
    run = copy_run(tiny_run, tmp_path / "words", table)
    evaluate(run)
    test = json.loads((run.directory / "metrics.json").read_text())["test"]
    assert list(test) == ["both", "text_only"]
    assert "there is nothing to take away" in (run.directory / "report.html").read_text("utf-8")


def test_mistakes_come_with_picture_words_truth_and_answer(tiny_run: Run, tmp_path: Path) -> None:
    source = make_catalogue(tmp_path / "items", 12, first_seed=5000)
    rows = [line.split(",") for line in source.read_text().splitlines()[1:]]
    wrong = {"cold": "warm", "warm": "green", "green": "cold"}
    table = tmp_path / "items" / "mislabelled.csv"
    write_catalogue(table, [(image, f"{text} <b>&", wrong[label]) for image, text, label in rows])
    run = copy_run(tiny_run, tmp_path / "mistaken", table)
    evaluation = answer_test_set(run)
    mistakes = find_mistakes(
        evaluation.items, evaluation.truth, evaluation.answers, run.labels, run.preprocessor.spec, limit=5
    )
    assert len(mistakes) == 5
    assert [each.probability for each in mistakes] == sorted((m.probability for m in mistakes), reverse=True)
    assert all(each.predicted != each.item.category for each in mistakes)
    evaluate(run)
    text = (run.directory / "report.html").read_text("utf-8")
    assert "data:image/jpeg;base64," in text
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text


def test_the_confusion_matrix_holds_every_item(page: str) -> None:
    table = page[page.index('class="matrix"') : page.index("</table>", page.index('class="matrix"'))]
    sums = [int(number) for number in re.findall(r'class="sum">(\d+)', table)]
    cells = [int(number) for number in re.findall(r'title="[^"]*">(\d+)', table)]
    assert sum(sums) == sum(cells) == 36


def test_cost_is_told_in_words_whatever_its_keys() -> None:
    train = {"num_items": 1227, "seconds": 22.5, "peak_memory_mb": 1234.5, "device": "cpu"}
    assert describe_cost({**train, "validation": {"seconds": 0.25}, "items_per_second": 54.53}) == [
        ("items", "1,227"),
        ("time", "22.5 s"),
        ("peak memory", "1,234.5 MB"),
        ("device", "cpu"),
        ("validation time", "0.25 s"),
        ("items per second", "54.53"),
    ]


def test_probabilities_before_scaling_are_those_without_temperature(tiny_run: Run) -> None:
    evaluation = answer_test_set(tiny_run)
    both, image_alone, text_alone = tiny_run.model.fusion_head.temperature.tolist()
    temperature = np.where(evaluation.has_text, np.where(evaluation.has_image, both, text_alone), image_alone)
    scaled = evaluation.uncalibrated ** (1 / temperature[:, None])
    scaled /= scaled.sum(axis=1, keepdims=True)
    assert np.allclose(scaled, evaluation.answers["both"].probabilities, atol=1e-5)
