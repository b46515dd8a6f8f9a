"""Ablation, baselines and doubtful labels on the tiny task."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from diptych.analysis.ablation import ablate, measure_baselines, variants
from diptych.analysis.ablation_report import balance_table, plot_ablation, score_table
from diptych.analysis.doubtful import find_suspects, plot_suspects, write_suspects
from diptych.config.loader import load_config
from diptych.models.fusion import FUSIONS
from diptych.runs.run import Run, load_run
from diptych_serving.errors import UserError
from tests.helpers.catalogues import COLOURS, WORDS, write_catalogue, write_picture


def test_the_variants_are_fusions_balances_and_modalities(tiny_config: Path) -> None:
    assert list(variants(load_config(tiny_config))) == [
        *FUSIONS,
        "balance weights",
        "balance sampling",
        "loss of each alone",
        "neither",
        "picture alone",
        "words alone",
    ]


def test_an_ablation_trains_each_variant_once_and_goes_on_where_it_stopped(
    tiny_config: Path, tmp_path: Path
) -> None:
    configs = variants(load_config(tiny_config, ["train.epochs=1"]))
    for name in ("loss of each alone", "neither"):  # test_training.py trains so
        del configs[name]
    results = ablate(configs, tmp_path, seeds=[0])
    assert set(json.loads((tmp_path / "ablation.json").read_text())) == set(configs)
    weights = tmp_path / "concat-0" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    assert ablate(configs, tmp_path, seeds=[0]) == results
    assert weights.stat().st_mtime_ns == trained

    other = load_config(tiny_config, ["train.epochs=1", "train.label_smoothing=0.3"])
    again = ablate({"concat": other}, tmp_path, seeds=[0])
    assert weights.stat().st_mtime_ns != trained
    assert load_run(weights.parent).config == other
    assert set(json.loads((tmp_path / "ablation.json").read_text())) == set(again) == {"concat"}

    assert score_table(results, {}).row_count == len(configs)
    categories = balance_table(results, own="concat")
    assert categories.row_count == len(COLOURS)
    assert len(categories.columns) == 5
    plot_ablation(results, {"chance": {"accuracy": 1 / 3}}, tmp_path / "ablation.png")
    with Image.open(tmp_path / "ablation.png") as picture:
        assert picture.width > 1000


def test_the_baselines_learn_the_tiny_task(tiny_run: Run) -> None:
    baselines = measure_baselines(tiny_run)
    assert baselines["linear probe"]["accuracy"] > 0.8
    assert baselines["TF-IDF, logistic regression"]["accuracy"] > 0.8


@pytest.fixture
def mislabelled(tiny_config: Path, tmp_path: Path) -> tuple[Path, set[int]]:
    """A catalogue in which four items carry another item's category, and their lines."""
    rows, wrong = [], {10, 30, 50, 70}
    for seed in range(80):
        category = sorted(COLOURS)[seed % 3]
        write_picture(tmp_path / f"{seed}.png", category, seed)
        words = WORDS[category].split()
        given = sorted(COLOURS)[(seed + 1) % 3] if seed in wrong else category
        rows.append((f"{seed}.png", f"{words[seed % 4]} {words[(seed + 1) % 4]}", given))
    return write_catalogue(tmp_path / "items.csv", rows), {seed + 2 for seed in wrong}


def test_wrong_labels_are_found_listed_and_drawn(
    tiny_config: Path, tmp_path: Path, mislabelled: tuple[Path, set[int]]
) -> None:
    table, wrong_lines = mislabelled
    # The backbones are random: this seed's tell the categories apart.
    suspects = find_suspects(load_config(tiny_config, [f"data.train_csv={table}", "seed=5"]))
    found = {suspect.item.line for suspect in suspects if suspect.item.table.name == "items.csv"}
    assert wrong_lines <= found
    assert len(found) < 12
    assert all(suspect.suggested != suspect.item.category for suspect in suspects)

    write_suspects(suspects, tmp_path / "doubtful.csv")
    with (tmp_path / "doubtful.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(suspects)


def test_without_cleanlab_the_extra_is_named(tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(UserError, match=r"cleanlab.* is not installed: pip install 'diptych\[doubt\]'"):
        find_suspects(load_config(tiny_config))


def test_the_suspects_are_drawn_on_one_sheet(tiny_config: Path, tiny_run: Run, tmp_path: Path) -> None:
    suspects = find_suspects(load_config(tiny_config))[:3]
    plot_suspects(suspects, tiny_run.preprocessor.spec, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000


def write_texts(path: Path, counts: dict[str, int]) -> Path:
    rows = [
        ("", f"{WORDS[category]} number {number}", category)
        for category, count in counts.items()
        for number in range(count)
    ]
    return write_catalogue(path, rows)


def test_a_category_of_one_item_is_not_judged_and_few_items_make_few_folds(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_texts(tmp_path / "train.csv", {"cold": 3, "green": 1, "warm": 3})
    val = write_texts(tmp_path / "val.csv", {"cold": 1, "warm": 1})
    labels = 'data.labels=["cold", "green", "unseen", "warm"]'
    suspects = find_suspects(
        load_config(tiny_config, [f"data.train_csv={table}", f"data.val_csv={val}", labels])
    )
    assert {suspect.suggested for suspect in suspects} <= {"cold", "warm"}
    errors = capsys.readouterr().err
    assert "not judged, because each is the only item of its category: green" in errors
    assert "no item of unseen, which data.labels names: never answered" in errors


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"cold": 9}, "the categories: found only 'cold'; training needs at least two labels"),
        ({"cold": 9, "warm": 1}, "found 1 categories with two items or more; expected: at least two"),
    ],
)
def test_what_cannot_be_compared_is_one_message(
    tiny_config: Path, tmp_path: Path, counts: dict[str, int], message: str
) -> None:
    table = write_texts(tmp_path / "train.csv", counts)
    val = write_texts(tmp_path / "val.csv", {"cold": 1})
    with pytest.raises(UserError, match=message):
        find_suspects(load_config(tiny_config, [f"data.train_csv={table}", f"data.val_csv={val}"]))
