"""The whole model: image encoder, text encoder and fusion head, trained together, exported apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.models.fusion import FusionHead
from diptych.models.image_encoder import ImageEncoder
from diptych.models.text_encoder import TextEncoder


class Inputs(NamedTuple):
    """A batch as preprocessing leaves it.

    pixel_values (B, 3, H, W) uint8; image_present (B,) bool; input_ids, attention_mask (B, L) int64
    """

    pixel_values: Tensor
    image_present: Tensor
    input_ids: Tensor
    attention_mask: Tensor

    @property
    def text_present(self) -> Tensor:
        """(B,) bool"""
        return self.attention_mask.any(dim=1)

    def keep(self, *, image: Tensor, text: Tensor) -> Inputs:
        """The same items, a modality taken away where its argument, (B,) bool, is false."""
        return self._replace(
            image_present=self.image_present & image, attention_mask=self.attention_mask * text[:, None]
        )

    def to(self, device: torch.device) -> Inputs:
        """On another device."""
        return Inputs(*(tensor.to(device) for tensor in self))


class Embeddings(NamedTuple):
    """A batch behind the backbones and before the projections.

    image (B, D_image) float32, text (B, D_text) float32; *_present (B,) bool; absent rows hold anything
    """

    image: Tensor
    image_present: Tensor
    text: Tensor
    text_present: Tensor

    def keep(self, *, image: Tensor | bool, text: Tensor | bool) -> Embeddings:
        """The same items, a modality taken away where its argument, (B,) bool or one for all, is false."""
        return self._replace(image_present=self.image_present & image, text_present=self.text_present & text)

    def to(self, device: torch.device) -> Embeddings:
        """On another device."""
        return Embeddings(*(tensor.to(device) for tensor in self))

    def rows(self, index: Tensor | slice) -> Embeddings:
        """Some of the items."""
        return Embeddings(*(tensor[index] for tensor in self))


class Classifier(nn.Module):
    """Logits from inputs, or from embeddings that were computed before."""

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder, fusion_head: FusionHead):
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.fusion_head = fusion_head

    def forward(self, batch: Inputs | Embeddings, *, each_alone: bool = False) -> Tensor:
        """(B, C) float32 logits, through the backbones where the batch has not been through them yet.

        each_alone  (3, B, C) instead: of the items as they are, of their pictures alone, of their words alone
        """
        image_features, text_features = self.features(batch)
        logits = self.fusion_head.logits(image_features, text_features)
        if not each_alone:
            return logits
        no_image, no_text = self.image_encoder.projection.absent, self.text_encoder.projection.absent
        image_alone = self.fusion_head.logits(image_features, no_text.expand_as(text_features))
        text_alone = self.fusion_head.logits(no_image.expand_as(image_features), text_features)
        return torch.stack([logits, image_alone, text_alone])

    def probabilities(self, batch: Inputs | Embeddings) -> Tensor:
        """(B, C) float32, calibrated."""
        image_features, text_features = self.features(batch)
        probabilities: Tensor = self.fusion_head(image_features, text_features)
        return probabilities

    def features(self, batch: Inputs | Embeddings) -> tuple[Tensor, Tensor]:
        """What the encoders say of pictures and of words: (B, 512), (B, 512) float32."""
        if isinstance(batch, Embeddings):
            image, text = batch.image[batch.image_present], batch.text[batch.text_present]
            return (
                self.image_encoder.projection(image, batch.image_present),
                self.text_encoder.projection(text, batch.text_present),
            )
        image_features = self.image_encoder(batch.pixel_values, batch.image_present)
        return image_features, self.text_encoder(batch.input_ids, batch.attention_mask, image_features)

    def embed(self, batch: Inputs) -> Embeddings:
        """The backbones alone, on the rows that are present."""
        text_present = batch.text_present
        image, text = self.image_encoder, self.text_encoder
        return Embeddings(
            image=_where_present(batch.image_present, image, batch.pixel_values),
            image_present=batch.image_present,
            text=_where_present(text_present, text, batch.input_ids, batch.attention_mask),
            text_present=text_present,
        )


def _where_present(present: Tensor, encoder: ImageEncoder | TextEncoder, *inputs: Tensor) -> Tensor:
    embeddings = torch.zeros(len(present), encoder.projection.embedding_dim, device=present.device)
    if present.any():
        embeddings[present] = encoder.embed(*(tensor[present] for tensor in inputs))
    return embeddings
