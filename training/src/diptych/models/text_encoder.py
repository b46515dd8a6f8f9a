"""The text encoder: a Hugging Face encoder, pooled, then a projection to 512 features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diptych.models.projection import Projection


class PooledBackbone(nn.Module):
    """A Hugging Face encoder whose output is one vector a text."""

    def __init__(self, encoder: PreTrainedModel, pooling: Literal["mean", "cls"]):
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(P, L) int64, (P, L) int64 -> (P, D) float32"""
        # As four dimensions the encoder takes the mask as it is; one that it builds itself would be
        # traced with the device of this machine inside.
        mask = attention_mask[:, None, None, :].bool()
        hidden = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return hidden[:, 0] if self.pooling == "cls" else pool_tokens(hidden, attention_mask)


class TextEncoder(nn.Module):
    """Tokens to features; rows without text get a learned vector and cost the backbone nothing.

    Every tensor of a valid type gets an answer. In a native server, rows of many callers are one batch: what
    raised here for one row would fail them all (docs/triton.md, 12).
    """

    def __init__(self, backbone: PooledBackbone, projection: Projection, max_tokens: int):
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.max_tokens = max_tokens
        self.vocabulary_size: int = backbone.encoder.get_input_embeddings().num_embeddings

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(P, L) int64, (P, L) int64 -> (P, D) float32. Columns that every row pads are not computed."""
        positions = torch.arange(1, attention_mask.size(1) + 1, device=attention_mask.device)
        longest = int((attention_mask * positions).max())
        return self.backbone(input_ids[:, :longest], attention_mask[:, :longest])

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_features: Tensor) -> Tensor:
        """Encode a batch in which some rows may have no text.

        input_ids       (B, L) int64; beyond max_tokens cut; what is not in the vocabulary becomes its nearest
        attention_mask  (B, L) int64; above 0: a real token; padding on the right; no real token: no text
        image_features  (B, 512) float32; unused: it makes Triton run this step after the image encoder,
                        because a fan-out hangs tritonserver before 26.05 when a queue is full
        returns         (B, 512) float32
        """
        length = min(input_ids.size(1), attention_mask.size(1), self.max_tokens)
        input_ids = input_ids[:, :length].clamp(0, self.vocabulary_size - 1)
        attention_mask = (attention_mask[:, :length] > 0).to(torch.int64)
        present = attention_mask.sum(1) > 0
        rows = present.nonzero().squeeze(1)
        if rows.numel() == 0:
            return self.projection(image_features.new_zeros((0, self.projection.embedding_dim)), present)
        embeddings = self.embed(input_ids.index_select(0, rows), attention_mask.index_select(0, rows))
        return self.projection(embeddings, present)


def pool_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Average each text over its real tokens.

    hidden          (P, L, D) float32
    attention_mask  (P, L)    int64, 1 real / 0 padding, at least one real token a row
    returns         (P, D)    float32
    """
    weights = attention_mask.unsqueeze(2).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)
