"""configs/article.toml, from local copies in the hubs' own formats: no network, random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from transformers import BertConfig, BertModel

from diptych.config.loader import load_config
from diptych.models.classifier import Classifier, Inputs
from diptych.models.fusion import FusionHead
from diptych.models.image_backbones import build_image_encoder
from diptych.models.text_backbones import build_text_encoder
from diptych.models.text_tokenizers import tokenizer_json
from diptych_serving.errors import UserError
from tests.helpers.tiny_model import make_text_backbone

ARTICLE = Path(__file__).parents[2] / "training" / "configs" / "article.toml"


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user would download elsewhere: torchvision's .pth and the hub's directory."""
    directory = tmp_path_factory.mktemp("copies")
    torch.save(torchvision.models.resnet50().state_dict(), directory / "resnet50.pth")
    make_text_backbone(directory / "bert-base-uncased")  # for its tokenizer
    BertModel(BertConfig()).save_pretrained(directory / "bert-base-uncased")
    return directory


def test_resnet50_and_bert_are_built_from_local_copies_and_train(copies: Path) -> None:
    overrides = [
        f"image.weights={copies / 'resnet50.pth'}",
        f"text.backbone={copies / 'bert-base-uncased'}",
    ]
    config = load_config(ARTICLE, overrides)
    model = Classifier(
        build_image_encoder(config.image), build_text_encoder(config.text), FusionHead(config.fusion, 4)
    )
    assert "[CLS]" in tokenizer_json(config.text)
    saved = torch.load(copies / "resnet50.pth", weights_only=True)
    assert torch.equal(model.image_encoder.backbone.conv1.weight, saved["conv1.weight"])
    batch = Inputs(
        pixel_values=torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8),
        image_present=torch.tensor([True, True]),
        input_ids=torch.randint(4, 100, (2, 128)),
        attention_mask=(torch.arange(128) < torch.tensor([[5], [9]])).long(),
    )
    logits = model(batch)
    assert logits.shape == (2, 4)
    logits.logsumexp(1).sum().backward()
    assert model.image_encoder.backbone.conv1.weight.grad.abs().sum() > 0
    assert model.text_encoder.backbone.encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_weights_that_do_not_fit_the_backbone_are_refused(copies: Path) -> None:
    overrides = [f"image.weights={copies / 'resnet50.pth'}", "image.backbone=torchvision:resnet18"]
    with pytest.raises(UserError, match=r"resnet50\.pth' does not fit the backbone"):
        build_image_encoder(load_config(ARTICLE, overrides).image)
