"""Training, evaluation and prediction on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.config.loader import load_config
from diptych.evaluation.calibration import fit_temperature
from diptych.evaluation.metrics import expected_calibration_error
from diptych.evaluation.plots import open_picture, plot_prediction
from diptych.evaluation.predict import predict
from diptych.models.backbones import build_classifier
from diptych.runs.run import Run, load_run
from diptych.train.train import train
from diptych_serving.errors import UserError
from tests.helpers.catalogues import COLOURS, WORDS, make_catalogue, write_catalogue, write_picture


def test_a_run_holds_all_that_later_steps_need(tiny_run: Run) -> None:
    names = {path.name for path in tiny_run.directory.iterdir()}
    assert names >= {
        "config.toml",
        "model.safetensors",
        "labels.txt",
        "tokenizer.json",
        "preprocessing.json",
        "metrics.json",
        "history.json",
        "training_curves.png",
        "confusion_matrix.png",
        "confusion_matrix.json",
        "classification_report.txt",
    }
    metrics = json.loads((tiny_run.directory / "metrics.json").read_text())
    for condition in ("both", "image_only", "text_only"):
        assert {"accuracy", "macro_f1"} <= set(metrics["test"][condition])
    with Image.open(tiny_run.directory / "confusion_matrix.png") as picture:
        assert picture.width > 400


def test_the_tiny_task_is_learned_from_each_modality(tiny_run: Run) -> None:
    metrics = json.loads((tiny_run.directory / "metrics.json").read_text())["test"]
    assert metrics["both"]["accuracy"] > 0.9
    assert metrics["image_only"]["accuracy"] > 0.5  # a frozen network of random weights; chance is 0.33
    assert metrics["text_only"]["accuracy"] > 0.8


def test_a_condition_counts_the_items_that_have_something_left(tiny_run: Run) -> None:
    metrics = json.loads((tiny_run.directory / "metrics.json").read_text())["test"]
    counts = {condition: scores["num_items"] for condition, scores in metrics.items()}
    assert counts["both"] == 36
    assert counts["image_only"] < 36
    assert counts["text_only"] < 36


def test_a_loaded_run_predicts_what_the_trained_one_does(tiny_run: Run) -> None:
    again = load_run(tiny_run.directory)
    assert again.labels == tiny_run.labels
    assert predict(again, b"", "snow and ice") == predict(tiny_run, b"", "snow and ice")
    assert next(iter(predict(again, b"", "snow and ice"))) == "cold"


def test_the_same_seed_gives_the_same_weights(tiny_config: Path, tmp_path: Path) -> None:
    first, second = (
        train(load_config(tiny_config, ["train.epochs=2"]), tmp_path / name) for name in ("first", "second")
    )
    weights = second.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.model.state_dict().items())


@pytest.mark.parametrize("is_frozen", [True, False])
def test_backbones_are_trained_end_to_end_unless_frozen(
    tiny_config: Path, tmp_path: Path, is_frozen: bool
) -> None:
    overrides = ["train.epochs=1", f"train.freeze_backbones={str(is_frozen).lower()}"]
    config = load_config(tiny_config, overrides)
    torch.manual_seed(config.seed)  # as `train` begins
    before = build_classifier(config.image, config.text, config.fusion, 3).state_dict()
    after = train(config, tmp_path / "run").model.state_dict()
    for name in (
        "image_encoder.backbone.conv_stem.weight",
        "text_encoder.backbone.encoder.embeddings.word_embeddings.weight",
    ):
        assert torch.equal(before[name], after[name]) is is_frozen


@pytest.mark.parametrize(("alone_loss", "is_learned"), [(0.0, False), (0.5, True)])
def test_the_loss_of_each_alone_teaches_what_stands_for_a_missing_modality(
    tiny_config: Path, tmp_path: Path, alone_loss: float, is_learned: bool
) -> None:
    whole = write_catalogue(  # nothing is missing here, and modality dropout takes nothing away
        tmp_path / "whole.csv",
        [(f"{seed}.png", WORDS[colour], colour) for seed, colour in enumerate(COLOURS)],
    )
    for seed, colour in enumerate(COLOURS):
        write_picture(tmp_path / f"{seed}.png", colour, seed)
    overrides = [
        f"data.train_csv={whole}",
        "train.drop_image=0.0",
        "train.drop_text=0.0",
        f"train.alone_loss={alone_loss}",
    ]
    config = load_config(tiny_config, ["train.epochs=2", "train.freeze_backbones=false", *overrides])
    torch.manual_seed(config.seed)  # as `train` begins
    before = build_classifier(config.image, config.text, config.fusion, 3).state_dict()
    after = train(config, tmp_path / "run").model.state_dict()
    for name in ("image_encoder.projection.absent", "text_encoder.projection.absent"):
        assert torch.equal(before[name], after[name]) is not is_learned


@pytest.mark.parametrize("is_frozen", [True, False])
def test_batch_norms_keep_their_statistics_if_told_so(
    tiny_config: Path, tmp_path: Path, is_frozen: bool
) -> None:
    overrides = ["train.freeze_backbones=false", f"train.freeze_batch_norm={str(is_frozen).lower()}"]
    run = train(load_config(tiny_config, ["train.epochs=1", *overrides]), tmp_path / "run")
    mean = run.model.image_encoder.backbone.bn1.running_mean
    assert torch.equal(mean, torch.zeros_like(mean)) is is_frozen  # as random weights begin


def test_bad_rows_stop_a_run_before_it_computes_anything(tiny_config: Path, tmp_path: Path) -> None:
    bad = write_catalogue(
        tmp_path / "bad.csv", [("absent.png", "a lake", "cold"), ("", "a lake", "lukewarm")]
    )
    config = load_config(tiny_config, [f"data.val_csv={bad}"])
    with pytest.raises(UserError, match=r"2 of 2 rows cannot be used(.|\n)*line 2: missing image file"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_test_set_trains_on(tiny_config: Path, tmp_path: Path) -> None:
    text = tiny_config.read_text()
    start = text.index("test_csv")
    config = tmp_path / "no_test.toml"
    config.write_text(text[:start] + text[text.index("[image]") :])
    run = train(load_config(config, ["train.epochs=1"]), tmp_path / "run")
    assert "test" not in json.loads((run.directory / "metrics.json").read_text())


def test_an_unfinished_run_is_not_taken_for_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a finished run \(model.safetensors is missing\)"):
        load_run(tmp_path)


def test_labels_of_the_config_decide_the_order(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, ["train.epochs=1", 'data.labels=["warm", "green", "cold"]'])
    assert train(config, tmp_path / "run").labels == ["warm", "green", "cold"]


def test_the_temperature_softens_what_is_overconfident() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2000,), generator=generator)
    logits = torch.nn.functional.one_hot(labels, 3) * 2.0 + torch.randn(2000, 3, generator=generator)
    temperature = fit_temperature(logits * 5, labels)
    assert temperature == pytest.approx(5 * fit_temperature(logits, labels), rel=1e-3)
    before = expected_calibration_error((logits * 5).softmax(1).numpy(), labels.numpy())
    after = expected_calibration_error((logits * 5 / temperature).softmax(1).numpy(), labels.numpy())
    assert after < 0.05 < before


def test_a_validation_set_without_mistakes_does_not_make_the_model_certain() -> None:
    labels = torch.arange(3).repeat(50)
    logits = torch.nn.functional.one_hot(labels, 3) * 2.0
    assert fit_temperature(logits, labels) == pytest.approx(0.368, abs=0.001)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10, np.float32)
    labels = np.array([0] * 6 + [1] * 4)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.3, abs=1e-6)


def test_a_prediction_is_drawn_with_and_without_its_picture(tiny_run: Run, tmp_path: Path) -> None:
    picture = next((make_catalogue(tmp_path / "items", 3).parent).glob("1.png")).read_bytes()
    probabilities = predict(tiny_run, picture, "a leaf")
    for name, data in (("with", picture), ("without", b"")):
        path = tmp_path / f"{name}.png"
        plot_prediction(
            open_picture(data, tiny_run.preprocessor.spec), "a leaf", probabilities, path, truth="green"
        )
        with Image.open(path) as drawn:
            assert drawn.width > 1000


def test_training_stops_when_nothing_gets_better(tiny_config: Path, tmp_path: Path) -> None:
    patience = ["train.patience=2", 'train.keep="val_macro_f1"']
    config = load_config(tiny_config, ["train.epochs=50", *patience, "train.lr=1e-9"])
    history = json.loads((train(config, tmp_path / "run").directory / "history.json").read_text())
    assert len(history) < 20
