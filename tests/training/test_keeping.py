"""Which epoch is kept, and how probabilities are calibrated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diptych.config.loader import load_config
from diptych.config.sections import FusionConfig, TrainConfig
from diptych.data.embedding_cache import embed_items
from diptych.evaluation.calibration import MIN_ITEMS, at_bound, fit_temperature, fit_temperatures
from diptych.evaluation.predict import CONDITIONS
from diptych.models.fusion import FusionHead
from diptych.runs.run import Run
from diptych.train.optimization import is_kept
from diptych.train.train import read_catalogues
from diptych_serving.errors import UserError

HISTORY = [{"val_loss": 0.5, "val_macro_f1": 0.7}, {"val_loss": 0.4, "val_macro_f1": 0.8}]


@pytest.mark.parametrize(
    ("keep", "scores", "expected"),
    [
        ("last", {"val_loss": 9.0, "val_macro_f1": 0.1}, True),
        ("val_loss", {"val_loss": 0.39, "val_macro_f1": 0.1}, True),
        ("val_loss", {"val_loss": 0.4, "val_macro_f1": 0.9}, False),
        ("val_macro_f1", {"val_loss": 9.0, "val_macro_f1": 0.81}, True),
        ("val_macro_f1", {"val_loss": 0.1, "val_macro_f1": 0.8}, False),
    ],
)
def test_an_epoch_is_kept_as_the_config_says(keep: str, scores: dict[str, float], expected: bool) -> None:
    assert is_kept(scores, HISTORY, TrainConfig(keep=keep)) is expected
    assert is_kept(scores, [], TrainConfig(keep=keep))


def test_the_last_epoch_is_kept_by_default(tiny_run: Run) -> None:
    metrics = json.loads((tiny_run.directory / "metrics.json").read_text())["train"]
    assert metrics["best_epoch"] == metrics["num_epochs"] == 12


def test_patience_without_a_score_to_watch_is_refused(tiny_config: Path) -> None:
    with pytest.raises(UserError, match="`patience` is 2 and `keep` is 'last'"):
        load_config(tiny_config, ["train.patience=2"])


def noisy_logits(truth: torch.Tensor, sharpness: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sharpness * (F.one_hot(truth, 3) * 2.0 + torch.randn(len(truth), 3, generator=generator))


def test_each_set_of_modalities_has_the_temperature_that_it_needs() -> None:
    truth = torch.arange(3).repeat(1000)
    logits = {
        name: noisy_logits(truth, sharpness, seed)
        for seed, (name, sharpness) in enumerate(zip(CONDITIONS, (1, 4, 2), strict=True))
    }
    has_all = torch.ones(3000, dtype=torch.bool)
    temperatures = fit_temperatures(logits, has_all, has_all, truth)
    assert temperatures["image_only"] == pytest.approx(4 * temperatures["both"], rel=0.1)
    assert temperatures["text_only"] == pytest.approx(2 * temperatures["both"], rel=0.1)


def test_too_few_items_with_one_modality_get_the_temperature_of_all() -> None:
    truth = torch.arange(3).repeat(100)
    logits = {name: noisy_logits(truth, 3, seed) for seed, name in enumerate(CONDITIONS)}
    has_text = torch.arange(300) < MIN_ITEMS - 1
    temperatures = fit_temperatures(logits, torch.ones(300, dtype=torch.bool), has_text, truth)
    assert temperatures["both"] == temperatures["text_only"] == fit_temperature(logits["both"], truth)
    assert temperatures["image_only"] != temperatures["both"]


def test_a_temperature_at_a_bound_is_told_with_its_reason() -> None:
    truth = torch.arange(3).repeat(50)
    flawless = F.one_hot(truth, 3) * 2.0
    assert "at its lower bound, 0.37" in str(at_bound(fit_temperature(flawless, truth)))
    hopeless = F.one_hot((truth + 1) % 3, 3) * 90.0
    assert "at its upper bound, 20.09" in str(at_bound(fit_temperature(hopeless, truth)))
    assert at_bound(fit_temperature(noisy_logits(truth, 1, 0), truth)) is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_head_knows_by_the_features_which_temperature_to_use() -> None:
    head = FusionHead(FusionConfig(hidden_dim=8), num_labels=3).eval()
    head.no_image.copy_(torch.randn(512) * 0.1)
    head.no_text.copy_(torch.randn(512) * 0.1)
    head.temperature.copy_(torch.tensor([0.5, 2.0, 4.0]))
    image, text = torch.randn(3, 512), torch.randn(3, 512)
    image[2], text[1] = head.no_image, head.no_text * 1.004  # as an encoder in bf16 rounds it
    with torch.inference_mode():
        expected = (head.logits(image, text) / torch.tensor([[0.5], [2.0], [4.0]])).softmax(1)
        torch.testing.assert_close(head(image, text), expected)
        torch.testing.assert_close(torch.jit.script(head)(image, text), expected)


def test_a_run_with_one_temperature_for_all_still_loads() -> None:
    head = FusionHead(FusionConfig(hidden_dim=8), num_labels=3)
    old = {name: tensor for name, tensor in head.state_dict().items() if not name.startswith("no_")}
    head.load_state_dict({**old, "temperature": torch.tensor(0.83)})
    assert head.temperature.tolist() == pytest.approx([0.83] * 3)


def test_a_run_answers_an_item_without_image_with_the_temperature_of_texts_alone(
    tiny_run: Run, tiny_config: Path
) -> None:
    _, items = read_catalogues(load_config(tiny_config), tiny_run.preprocessor)
    embeddings = embed_items(tiny_run.model, items, tiny_run.preprocessor, title="items", num_workers=0)
    shown = embeddings.keep(image=False, text=True).rows(embeddings.text_present)
    model = tiny_run.model.eval()
    with torch.inference_mode():
        expected = (model(shown) / model.fusion_head.temperature[2]).softmax(1)
        np.testing.assert_allclose(model.probabilities(shown), expected, atol=1e-6)
    assert model.fusion_head.temperature.unique().numel() > 1
