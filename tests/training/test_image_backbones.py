"""Image backbones of three libraries, and weights in files as people have them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, ResNetConfig, ViTConfig

from diptych.config.sections import ImageConfig
from diptych.models.image_backbones import build_image_encoder, save_image_architecture
from diptych.models.image_encoder import ImageEncoder
from diptych_serving.errors import UserError

SMALL = "test_efficientnet"


def build(backbone: str, size_px: int = 64, weights: str = "random", directory: Path | None = None):
    return build_image_encoder(
        ImageConfig(backbone=backbone, weights=weights, size_px=size_px), directory
    ).eval()


def pictures(size_px: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, size_px, size_px), dtype=torch.uint8, generator=generator)


def checkpoint(num_classes: int = 7, in_chans: int = 3) -> dict[str, Tensor]:
    """A state dict of the small model as it was fine-tuned elsewhere, its classifier included."""
    torch.manual_seed(1)
    weights = timm.create_model(SMALL, num_classes=num_classes, in_chans=in_chans).state_dict()
    return dict(weights)


def has_the_weights(encoder: ImageEncoder) -> bool:
    own = encoder.backbone.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in checkpoint().items() if name in own)


@pytest.mark.parametrize(
    ("backbone", "dim"),
    [
        ("timm:mobilenetv3_small_050", 1024),  # its num_features say 288
        ("timm:test_vit", 64),  # made for 160 pixels
        ("torchvision:googlenet", 1024),  # has two more outputs in training
        ("torchvision:squeezenet1_1", 512),  # classifies by a convolution
    ],
)
@torch.inference_mode()
def test_an_embedding_is_as_long_as_the_backbone_gives(backbone: str, dim: int) -> None:
    encoder = build(backbone)
    assert encoder.embed(pictures()).shape == (2, dim) == (2, encoder.projection.embedding_dim)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("timm:resnet5", "no such image classifier. Did you mean 'timm:resnet50'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no such image classifier"),
        ("torchvision:vit_b_16", "does not take image.size_px = 64; it takes image.size_px = 224"),
        ("resnet50", "expected 'timm:NAME', 'torchvision:NAME', or 'hf:NAME'"),
        ("timm:hf-hub:someone/model", "name a copy of its weights in image.weights"),
    ],
)
def test_a_name_that_cannot_be_built_is_refused_in_one_sentence(backbone: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(backbone)


def test_repvgg_trains_in_the_layout_in_which_onednn_keeps_to_its_buffers() -> None:
    encoder = build("timm:repvgg_a0")
    assert not encoder.channels_last
    encoder.train().embed(pictures()).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in encoder.backbone.parameters())
    assert build(f"timm:{SMALL}").channels_last


@pytest.mark.parametrize(
    "tree",
    [
        checkpoint(),
        {"state_dict": checkpoint(num_classes=7)},
        {"model": {f"module.{name}": tensor for name, tensor in checkpoint().items()}, "epoch": 3},
        {  # PyTorch Lightning's
            "state_dict": {f"model.backbone.{name}": tensor for name, tensor in checkpoint().items()}
            | {"loss.weight": torch.ones(7)},
            "pytorch-lightning_version": "2.5",
            "hyper_parameters": {"lr": 0.1},
        },
    ],
    ids=["state dict", "state_dict", "module.", "Lightning"],
)
def test_checkpoints_of_trainers_load_without_their_classifier(tree: object, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "last.ckpt")
    assert has_the_weights(build(f"timm:{SMALL}", weights=str(tmp_path / "last.ckpt")))


def test_a_snapshot_of_a_hub_loads_from_its_directory(tmp_path: Path) -> None:
    save_file(checkpoint(), tmp_path / "model.safetensors")
    torch.save(checkpoint(num_classes=2), tmp_path / "pytorch_model.bin")
    assert has_the_weights(build(f"timm:{SMALL}", weights=str(tmp_path)))


@torch.inference_mode()
def test_weights_for_grey_pictures_see_a_grey_picture_as_before(tmp_path: Path) -> None:
    torch.save(checkpoint(in_chans=1), tmp_path / "grey.pth")
    encoder = build(f"timm:{SMALL}", weights=str(tmp_path / "grey.pth"))
    original = timm.create_model(SMALL, num_classes=0, in_chans=1).eval()
    original.load_state_dict(checkpoint(in_chans=1), strict=False)
    grey = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(encoder.backbone(grey.expand(2, 3, 64, 64)), original(grey))


class Trainer:
    """What a whole pickled object may be."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><title>Sign in</title>", "is an HTML page"),
        (pickle.dumps(Trainer()), "holds pickled objects besides tensors"),
        (b"PK\x03\x04 and no more", "damaged, or not downloaded to its end"),
        (b"plain words", "is no file of weights that is known here"),
    ],
    ids=["empty", "LFS", "HTML", "pickle", "half", "words"],
)
def test_a_file_that_holds_no_weights_is_refused_for_what_it_is(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        build(f"timm:{SMALL}", weights=str(tmp_path / "weights.pth"))


def test_weights_of_a_deeper_network_of_the_same_family_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match="tensors have no place in it, such as layer1"):
        build("timm:resnet18", weights=str(tmp_path / "resnet34.pth"))


def test_without_a_network_a_download_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached, and its cache here has no copy"):
        build(f"timm:{SMALL}", weights="default")


@pytest.mark.parametrize(
    "architecture",
    [
        ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64),
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    ],
    ids=["ViT", "ResNet"],
)
@torch.inference_mode()
def test_a_vision_model_of_transformers_is_rebuilt_from_its_run(
    architecture: PretrainedConfig, tmp_path: Path
) -> None:
    architecture.save_pretrained(tmp_path / "hub")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(processor))
    encoder = build(f"hf:{tmp_path / 'hub'}")
    save_image_architecture(encoder, tmp_path / "run")
    again = build("hf:elsewhere/unknown", directory=tmp_path / "run")
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.embed(pictures()), encoder.embed(pictures()))
    assert again.mean.flatten().tolist() == pytest.approx([25.5, 51.0, 76.5])


def test_training_on_a_batch_without_images_leaves_the_batch_norms_as_they_are() -> None:
    config = ImageConfig(backbone="timm:test_resnet", weights="random", size_px=32)
    encoder = build_image_encoder(config).train()
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    encoder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.bool))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.named_buffers())
