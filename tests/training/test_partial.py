"""Fine-tuning of parts of the backbones, and what training will cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.config.loader import load_config
from diptych.config.sections import TrainConfig
from diptych.export.export import export
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier, Inputs
from diptych.runs.run import load_run
from diptych.train.dry_run import dry_run
from diptych.train.optimization import build_optimizer
from diptych.train.partial import choose_trained_weights, depths_of
from diptych.train.train import train
from diptych_serving.errors import UserError

END_TO_END = [
    "train.freeze_backbones=false",
    "train.epochs=1",
    "train.backbone_lr=0.01",
    "image.backbone=timm:test_vit",
]


def build(config_file: Path, overrides: list[str]) -> Classifier:
    """The model as a run of this config starts."""
    config = load_config(config_file, [*END_TO_END, *overrides])
    torch.manual_seed(config.seed)
    return build_classifier(config.image, config.text, config.fusion, 3)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if ".backbone." in name and not torch.equal(before[name], after[name])}


def test_the_last_blocks_are_trained_and_the_rest_stays(tiny_config: Path, tmp_path: Path) -> None:
    overrides = ["train.unfreeze_layers=1"]
    run = train(load_config(tiny_config, [*END_TO_END, *overrides]), tmp_path / "run")
    moved = changed(build(tiny_config, overrides).state_dict(), run.model.state_dict())
    assert any("encoder.encoder.layer.1." in name for name in moved)
    assert not any("encoder.encoder.layer.0." in name or "embeddings" in name for name in moved)
    last = max(depths_of(run.model.image_encoder.backbone).values())
    assert any(f"backbone.blocks.{last - 1}." in name for name in moved)
    assert not any(f"backbone.blocks.{last - 2}." in name or "patch_embed" in name for name in moved)


def test_lora_is_merged_before_a_run_is_saved_and_exports(tiny_config: Path, tmp_path: Path) -> None:
    overrides = ["train.lora_rank=2"]
    train(load_config(tiny_config, [*END_TO_END, *overrides]), tmp_path / "run")
    run = load_run(tmp_path / "run")
    moved = changed(build(tiny_config, overrides).state_dict(), run.model.state_dict())
    assert any("attention" in name for name in moved)
    assert any("attn.qkv.weight" in name for name in moved)
    assert not any("embeddings" in name or "patch_embed" in name or name.endswith("bias") for name in moved)
    _, gated = export(run, tmp_path / "repository")
    assert gated.parity[0].max_difference < 1e-5


def test_each_block_learns_slower_than_the_block_after_it(tiny_config: Path) -> None:
    model = build(tiny_config, [])
    optimizer, _ = build_optimizer(model, TrainConfig(backbone_lr=0.08, lr=1.0, layer_decay=0.5, warmup=0), 9)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    encoder = model.text_encoder.backbone.encoder
    parts = [encoder.embeddings.word_embeddings, *(layer.output.dense for layer in encoder.encoder.layer)]
    assert [rates[id(part.weight)] for part in parts] == pytest.approx([0.02, 0.04, 0.08])
    assert rates[id(model.image_encoder.projection.absent)] == 1.0


def test_checkpointed_gradients_are_the_same(tiny_config: Path) -> None:
    batch = Inputs(
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.ones(2, dtype=torch.bool),
        torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
        torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    )
    gradients = []
    for is_on in (False, True):
        model = build(tiny_config, []).train()
        choose_trained_weights(model, TrainConfig(gradient_checkpointing=is_on))
        torch.manual_seed(1)
        model(batch).sum().backward()
        weights = [*model.image_encoder.backbone.parameters(), *model.text_encoder.backbone.parameters()]
        gradients.append([weight.grad for weight in weights if weight.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_network_that_cannot_checkpoint_gradients_is_refused(tiny_config: Path) -> None:
    model = build(tiny_config, ["image.backbone=torchvision:squeezenet1_1"])
    with pytest.raises(UserError, match="the image backbone does not support it"):
        choose_trained_weights(model, TrainConfig(gradient_checkpointing=True))


def test_two_ways_to_train_a_part_exclude_one_another(tiny_config: Path) -> None:
    with pytest.raises(UserError, match="`unfreeze_layers` and `lora_rank` exclude one another"):
        load_config(tiny_config, [*END_TO_END, "train.unfreeze_layers=1", "train.lora_rank=2"])


def test_a_dry_run_says_what_training_costs_and_writes_no_run(tiny_config: Path) -> None:
    text = dry_run(load_config(tiny_config, [*END_TO_END, "train.batch_size=2", "train.lora_rank=1"]))
    assert "trained\n" in text
    assert "MB optimizer" in text
    assert "s for 2 items, the median of 10" in text
    assert "for 42 steps, without validation" in text
