"""The whole model from its config; `image_backbones` and `text_backbones` build its two encoders."""

from __future__ import annotations

from pathlib import Path

from diptych.config.sections import PAIR, FusionConfig, ImageConfig, TextConfig
from diptych.models.classifier import Classifier
from diptych.models.fusion import FusionHead
from diptych.models.image_backbones import build_image_encoder
from diptych.models.pairs import build_pair
from diptych.models.text_backbones import build_text_encoder


def build_classifier(
    image: ImageConfig,
    text: TextConfig,
    fusion: FusionConfig,
    num_labels: int,
    text_architecture: Path | None = None,
    image_architecture: Path | None = None,
) -> Classifier:
    """The whole model; see the builders of its parts."""
    if image.backbone == PAIR:
        return Classifier(*build_pair(image, text, text_architecture), FusionHead(fusion, num_labels))
    return Classifier(
        build_image_encoder(image, image_architecture),
        build_text_encoder(text, text_architecture),
        FusionHead(fusion, num_labels),
    )
