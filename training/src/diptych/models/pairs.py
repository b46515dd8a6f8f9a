"""Pairs that were trained together: both encoders, tokenizer and image preprocessing from one directory."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from diptych.config.sections import ImageConfig, TextConfig
from diptych.models.image_encoder import ImageEncoder
from diptych.models.projection import Projection
from diptych.models.text_backbones import load_model, text_encoder_of
from diptych.models.text_encoder import TextEncoder
from diptych_serving.errors import UserError

FAMILIES = ("clip", "siglip", "chinese_clip", "metaclip_2")


class PairedImages(nn.Module):
    """The image tower of a pair, with what its authors apply to the pooled vector."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.head = getattr(model, "visual_projection", None) or nn.Identity()
        config = model.config.vision_config
        self.embedding_dim = int(getattr(self.head, "out_features", config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(P, 3, H, W) float32 -> (P, D) float32"""
        embeddings: Tensor = self.head(self.tower(pixel_values=pixel_values).pooler_output)
        return embeddings


def build_pair(
    image: ImageConfig, text: TextConfig, directory: Path | None = None
) -> tuple[ImageEncoder, TextEncoder]:
    """Both encoders of a resolved pair, with their projections and fresh ones of ours.

    directory: where a run keeps the pair's own config, to rebuild its architecture without weights
    """
    source = str(directory) if directory else text.backbone
    with_weights = not directory and text.weights == "default"
    model = load_model(text, source, with_weights=with_weights, is_pair=True)
    if model.config.model_type not in FAMILIES:
        raise UserError(
            f"pair.backbone '{text.backbone}': found a model of type '{model.config.model_type}'; "
            f"accepted: {', '.join(FAMILIES)}. Of SigLIP 2, those with a fixed size are of type 'siglip'"
        )
    assert image.mean is not None, "resolve_pair sets it"
    assert image.std is not None, "resolve_pair sets it"
    tower = PairedImages(model)
    projection = Projection(tower.embedding_dim, image.dropout)
    encoder = ImageEncoder(tower, projection, list(image.mean), list(image.std), image.size_px)
    return encoder, text_encoder_of(model, text, source, is_new=directory is None)
