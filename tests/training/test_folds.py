"""Cross-validation: who is trained on what, what is reported, and what a second run does again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from diptych.analysis.cross_validation import cross_validate
from diptych.analysis.doubtful import find_suspects, rank_suspects
from diptych.analysis.fold_average import write_average
from diptych.cli.main import app
from diptych.config.loader import load_config
from diptych.data.catalogue import read_catalogue
from diptych.data.folds import plan_folds, predict_out_of_fold
from diptych.data.groups import group_items
from diptych.evaluation.metrics import score_groups, summarize
from diptych.runs.run import Run, load_run
from diptych_serving.errors import UserError
from tests.helpers.catalogues import COLOURS, WORDS, make_catalogue, write_catalogue, write_picture


@pytest.fixture(scope="module")
def cross_validated(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where `diptych train --folds 3` has written, and what it printed."""
    out = tmp_path_factory.mktemp("cross") / "validated"
    command = ["train", str(tiny_config), "--out", str(out), "--folds", "3", "--set", "train.epochs=6"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out, result.output


def test_a_group_is_in_one_fold_and_each_item_is_held_out_once() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 200)
    truth = rng.integers(0, 3, 200)
    folds = plan_folds(truth, groups, 5, seed=0, chooses_epoch=False)
    assert np.array_equal(np.sort(np.concatenate([fold.held_out for fold in folds])), np.arange(200))
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.held_out])
        assert len(fold.train) + len(fold.held_out) == 200


def test_items_that_choose_the_epoch_are_neither_trained_on_nor_held_out() -> None:
    truth, groups = np.arange(160) % 2, np.arange(160)
    for fold in plan_folds(truth, groups, 4, seed=0, chooses_epoch=True):
        parts = [set(part.tolist()) for part in (fold.train, fold.val, fold.held_out)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 160
        assert len(fold.val) == 120 / 8


def test_too_few_groups_are_counted_in_the_message() -> None:
    truth, groups = np.arange(9) % 3, np.arange(9) // 3
    with pytest.raises(UserError, match="found 3 groups of near-duplicates among 9 items; 5 folds need"):
        plan_folds(truth, groups, 5, seed=0, chooses_epoch=False)


def test_a_label_that_is_rarer_than_folds_is_held_out_all_the_same() -> None:
    truth = np.array([0] * 20 + [1] * 2)
    folds = plan_folds(truth, np.arange(22), 5, seed=0, chooses_epoch=False)
    assert sorted(np.concatenate([fold.held_out for fold in folds]).tolist()) == list(range(22))


def test_a_label_that_a_fold_has_never_seen_has_no_probability_there() -> None:
    truth = np.array([0] * 10 + [1] * 10 + [2])
    features = np.eye(3)[truth] + np.random.default_rng(0).normal(0, 0.1, (21, 3))
    folds = plan_folds(truth, np.arange(21), 3, seed=0, chooses_epoch=False)
    probabilities = predict_out_of_fold(LogisticRegression(), features, truth, folds, num_labels=4)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert probabilities[20, 2] == 0  # the only item of its label
    assert (probabilities[:, 3] == 0).all()  # no item has it
    assert (probabilities[:20].argmax(axis=1) == truth[:20]).all()


def test_items_that_look_or_read_alike_share_a_group(tiny_run: Run, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_picture(tmp_path / f"{seed}.png", "warm", 0)  # twice the same
    rows = [
        ("0.png", "a lamp", "warm"),
        ("1.png", "a fire", "warm"),
        ("", "A fire", "cold"),
        ("", "ice", "cold"),
    ]
    preprocessor = tiny_run.preprocessor
    table = write_catalogue(tmp_path / "items.csv", rows)
    items = read_catalogue(table, labels=None, preprocessors=[preprocessor])
    first, second, third, other = group_items(items, preprocessor.spec)
    assert first == second == third != other


def test_a_standard_error_over_groups_of_one_is_the_binomial_one() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 400).astype(np.float32)
    labels = np.where(rng.random(400) < 0.7, probabilities.argmax(axis=1), 0)
    scores = score_groups(probabilities, labels, np.arange(400))
    accuracy = scores["accuracy"]
    assert scores["accuracy_error"] == pytest.approx((accuracy * (1 - accuracy) / 400) ** 0.5, rel=0.1)
    plain = summarize(probabilities, labels)
    once = scores["each_group_once"]
    assert {name: once[name] for name in ("accuracy", "macro_f1", "ece")} == pytest.approx(
        {name: plain[name] for name in ("accuracy", "macro_f1", "ece")}, abs=1e-5
    )


def test_copies_of_items_say_nothing_new() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 100).astype(np.float32)
    labels = rng.integers(0, 4, 100)
    single = score_groups(probabilities, labels, np.arange(100))
    copied = score_groups(*(np.repeat(array, 9, axis=0) for array in (probabilities, labels, np.arange(100))))
    assert copied["num_items"] == 900
    assert copied["num_groups"] == 100
    for name in ("accuracy", "macro_f1"):
        assert copied[f"{name}_error"] == pytest.approx(single[f"{name}_error"], rel=0.05)


def test_a_long_series_counts_as_one_where_each_group_counts_once() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10, np.float32)
    labels = np.array([0] * 9 + [1])  # a series of nine that is right, and one item that is wrong
    scores = score_groups(probabilities, labels, np.array([0] * 9 + [1]))
    assert scores["accuracy"] == pytest.approx(0.9)
    assert scores["each_group_once"]["accuracy"] == pytest.approx(0.5)


def test_every_item_is_answered_once_and_scored_with_its_error(cross_validated: tuple[Path, str]) -> None:
    out, printed = cross_validated
    results = json.loads((out / "cross_validation.json").read_text())
    both = results["out_of_fold"]["both"]
    assert both["num_items"] == 84 + 36 + 36
    assert both["each_group_once"]["accuracy"] > 0.7  # a few long series of the same drawing are not learned
    assert 0.01 < both["accuracy_error"] < 0.5  # 23 groups of very different sizes
    assert f"{both['accuracy']:.3f} ± {both['accuracy_error']:.3f}" in printed
    assert results["out_of_fold"]["image_only"]["num_items"] < both["num_items"]
    assert set(results["baselines"]) == {"linear probe", "TF-IDF, logistic regression"}
    assert len(results["by_fold"]) == 3
    assert sum(scores["both"]["num_items"] for scores in results["by_fold"]) == both["num_items"]
    with (out / "out_of_fold.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["place"] for row in rows}) == both["num_items"]
    right = sum(row["predicted"] == row["category"] for row in rows) / len(rows)
    assert right == pytest.approx(both["accuracy"], abs=1e-6)
    fold_of = {}
    for row in rows:
        assert fold_of.setdefault(row["group"], row["fold"]) == row["fold"]


def test_a_fold_is_a_run_that_has_not_seen_what_it_answers(cross_validated: tuple[Path, str]) -> None:
    out, _ = cross_validated
    with (out / "out_of_fold.csv").open(newline="") as file:
        folds = [row["fold"] for row in csv.DictReader(file)]
    for number in ("1", "2", "3"):
        metrics = json.loads((out / f"fold-{number}" / "metrics.json").read_text())
        assert metrics["train"]["num_items"] == len(folds) - folds.count(number)


def test_the_averaged_run_has_the_backbones_of_the_folds_and_the_mean_of_their_heads(
    cross_validated: tuple[Path, str],
) -> None:
    out, printed = cross_validated
    folds = [load_file(out / f"fold-{number}" / "model.safetensors") for number in (1, 2, 3)]
    averaged = load_file(out / "averaged" / "model.safetensors")
    assert averaged.keys() == folds[0].keys()
    for name in averaged.keys() - {"fusion_head.temperature"}:
        each = torch.stack([fold[name] for fold in folds])
        if ".backbone." in name:
            assert (averaged[name] == each).all(), name
        else:
            assert torch.allclose(averaged[name], each.mean(dim=0), atol=1e-6), name
    moved = "fusion_head.classifier.weight"
    assert not torch.equal(folds[0][moved], folds[1][moved])
    assert f"{out / 'averaged'}: one run, the mean of the folds' weights" in printed


def test_the_averaged_run_is_scored_and_calibrated_by_answers_to_unseen_items(
    cross_validated: tuple[Path, str],
) -> None:
    out, _ = cross_validated
    results = json.loads((out / "cross_validation.json").read_text())
    metrics = json.loads((out / "averaged" / "metrics.json").read_text())
    assert metrics.keys() == {"train", "out_of_fold"}  # no score of the averaged model, which has seen all
    assert metrics["out_of_fold"] == results["out_of_fold"]
    assert metrics["train"]["num_items"] == results["out_of_fold"]["both"]["num_items"]
    temperatures = load_run(out / "averaged").model.fusion_head.temperature.tolist()
    assert temperatures == pytest.approx(list(metrics["train"]["temperature"].values()), abs=1e-4)


def test_the_averaged_temperatures_follow_the_size_of_its_logits(
    cross_validated: tuple[Path, str], tmp_path: Path
) -> None:
    out = cross_validated[0]
    directories = [shutil.copytree(out / "fold-1", tmp_path / name) for name in ("fold-1", "fold-2")]
    path = directories[1] / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    for name in ("fusion_head.classifier.weight", "fusion_head.classifier.bias"):
        weights[name] = -weights[name] / 2
    save_file(weights, path, metadata)
    run = load_run(directories[0])
    items = read_catalogue(str(run.config.data.val_csv), labels=None, preprocessors=[run.preprocessor])
    write_average(
        directories,
        tmp_path / "averaged",
        config=run.config,
        held_out=[items[:20], items[20:]],
        temperatures={"both": 0.5, "image_only": 1.0, "text_only": 2.0},
        out_of_fold={},
    )
    temperatures = load_run(tmp_path / "averaged").model.fusion_head.temperature.tolist()
    # The folds' logits have sizes of 1 and 1/2, in opposite directions: 3/4 in the mean.
    # Those of the averaged model have 1/4.
    assert temperatures == pytest.approx([0.5 / 3, 1 / 3, 2 / 3], rel=1e-4)


def test_the_averaged_run_is_evaluated_asked_and_exported_like_any_other(
    cross_validated: tuple[Path, str], tmp_path: Path
) -> None:
    averaged = shutil.copytree(cross_validated[0] / "averaged", tmp_path / "averaged")
    table = make_catalogue(tmp_path / "new", 36, first_seed=3000)
    for command in (
        ["evaluate", str(averaged), "--set", f"data.test_csv={table}"],
        ["predict", str(averaged), "--text", "a sun and a fire"],
        ["export", str(averaged), "--to", str(tmp_path / "repository"), "--precision", "fp32"],
    ):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    metrics = json.loads((averaged / "metrics.json").read_text())
    assert metrics["test"]["both"]["accuracy"] > 0.7
    assert {"train", "out_of_fold"} < metrics.keys()
    assert (tmp_path / "repository" / "classifier" / "1" / "manifest.json").is_file()


def test_fine_tuned_folds_leave_no_averaged_run(tiny_config: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "averaged" / "model.safetensors"
    earlier.parent.mkdir()
    earlier.touch()
    overrides = ["train.freeze_backbones=false", "train.epochs=1"]
    cross_validate(load_config(tiny_config, overrides), tmp_path, 2)
    assert not earlier.exists()
    assert (tmp_path / "cross_validation.json").is_file()


def test_folds_that_started_from_other_weights_are_not_averaged(
    cross_validated: tuple[Path, str], tiny_config: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(cross_validated[0], tmp_path / "validated")
    path = out / "fold-2" / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    path.write_text(json.dumps({**fingerprint, "weights to start from": "another version of them"}))
    message = r"fold-2: started from other weights than .*fold-3.* Delete them and run the same command again"
    with pytest.raises(UserError, match=message):
        cross_validate(load_config(tiny_config, ["train.epochs=6"]), out, 3)
    assert not (out / "averaged" / "model.safetensors").exists()


def test_a_second_time_only_what_has_changed_is_trained(
    cross_validated: tuple[Path, str], tiny_config: Path
) -> None:
    out, _ = cross_validated
    weights = [out / f"fold-{number}" / "model.safetensors" for number in (1, 2, 3)]
    trained = [path.stat().st_mtime_ns for path in weights]
    command = ["train", str(tiny_config), "--out", str(out), "--folds", "3", "--set", "train.epochs=6"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert [path.stat().st_mtime_ns for path in weights] == trained
    other = [*command, "--set", "train.lr=0.001"]
    assert CliRunner().invoke(app, other).exit_code == 0
    assert not set(trained) & {path.stat().st_mtime_ns for path in weights}


def test_labels_that_no_model_could_judge_are_not_doubted() -> None:
    truth = np.array([0, 0, 1, 1, 2])
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.1, 0.9, 0], [0.2, 0.8, 0], [0.5, 0.5, 0]])
    assert rank_suspects([], ["a", "b", "c"], truth, probabilities) == []


def test_doubt_takes_labels_with_fewer_items_than_folds(tiny_config: Path, tmp_path: Path) -> None:
    rows = []
    for seed in range(8):
        category = sorted(COLOURS)[seed % 2]
        write_picture(tmp_path / f"{seed}.png", category, seed)
        rows.append((f"{seed}.png", f"{WORDS[category].split()[seed % 4]} {seed}", category))
    write_picture(tmp_path / "8.png", "warm", 8)
    table = write_catalogue(tmp_path / "items.csv", [*rows, ("8.png", "fire", "warm")])
    config = load_config(tiny_config, [f"data.train_csv={table}", f"data.val_csv={table}"])
    assert all(suspect.item.category != "warm" for suspect in find_suspects(config))


def test_a_run_is_not_mixed_with_folds(tiny_run: Run, tiny_config: Path) -> None:
    with pytest.raises(UserError, match=r"holds a run; name another directory for the folds"):
        cross_validate(load_config(tiny_config), tiny_run.directory, 3)
