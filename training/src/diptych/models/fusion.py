"""The fusion head: two feature vectors to calibrated probabilities, one sample at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.config.sections import FusionConfig, FusionKind
from diptych.models.projection import FEATURE_DIM


class ConcatFusion(nn.Module):
    """The article's fusion: both vectors side by side through an MLP."""

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * FEATURE_DIM, config.hidden_dim), nn.ReLU(), nn.Dropout(config.dropout)
        )

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, 512), (B, 512) float32 -> (B, hidden_dim) float32"""
        return self.layers(torch.cat([image_features, text_features], dim=1))


class AttentionFusion(nn.Module):
    """Cross-modal attention over the two vectors of one sample: a sequence of two, never the batch axis."""

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.modality = nn.Parameter(torch.randn(2, FEATURE_DIM) * 0.02)
        self.query_key_value = nn.Linear(FEATURE_DIM, 3 * FEATURE_DIM)
        self.output = nn.Linear(FEATURE_DIM, FEATURE_DIM)
        self.norm = nn.LayerNorm(FEATURE_DIM)
        self.mlp = ConcatFusion(config)

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, 512), (B, 512) float32 -> (B, hidden_dim) float32"""
        sequence = torch.stack([image_features, text_features], dim=1) + self.modality  # (B, 2, 512)
        batch, length, dim = sequence.shape
        split = self.query_key_value(sequence).reshape(
            batch, length, 3, self.num_heads, dim // self.num_heads
        )
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, 2, 512 / heads) each
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(sequence.shape)
        sequence = self.norm(sequence + self.output(attended))
        return self.mlp(sequence[:, 0], sequence[:, 1])


class GatedFusion(nn.Module):
    """A gated multimodal unit: each component takes its share from either modality (Arevalo et al., 2017)."""

    def __init__(self, config: FusionConfig):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(FEATURE_DIM, config.hidden_dim), nn.Tanh())
        self.text = nn.Sequential(nn.Linear(FEATURE_DIM, config.hidden_dim), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(2 * FEATURE_DIM, config.hidden_dim), nn.Sigmoid())
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, 512), (B, 512) float32 -> (B, hidden_dim) float32"""
        gate = self.gate(torch.cat([image_features, text_features], dim=1))
        mixed = torch.lerp(self.text(text_features), self.image(image_features), gate)
        return self.dropout(mixed)


FUSIONS: dict[FusionKind, type[nn.Module]] = {
    "concat": ConcatFusion,
    "attention": AttentionFusion,
    "gated": GatedFusion,
}


class FusionHead(nn.Module):
    """Fusion, a linear classifier and the temperatures that calibrate it.

    temperature  (3,)   float32: of items with both modalities, with an image alone, with a text alone
    no_image     (512,) float32: the features of an item without image, by which such an item is known
    no_text      (512,) float32: likewise
    """

    def __init__(self, config: FusionConfig, num_labels: int):
        super().__init__()
        self.fusion = FUSIONS[config.kind](config)
        self.classifier = nn.Linear(config.hidden_dim, num_labels)
        self.temperature = nn.Buffer(torch.ones(3))
        self.no_image = nn.Buffer(torch.zeros(FEATURE_DIM))
        self.no_text = nn.Buffer(torch.zeros(FEATURE_DIM))

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, 512), (B, 512) float32 -> (B, C) float32, not calibrated"""
        return self.classifier(self.fusion(image_features, text_features))

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, 512), (B, 512) float32 -> (B, C) float32 probabilities, calibrated, rows sum to 1"""
        has_image = _differs(image_features, self.no_image)
        has_text = _differs(text_features, self.no_text)
        both, image_alone, text_alone = self.temperature.unbind()
        temperature = torch.where(has_text, torch.where(has_image, both, text_alone), image_alone)
        return torch.softmax(self.logits(image_features, text_features) / temperature, dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Runs from before there was one for each alone have one temperature for all."""
        temperature = state_dict.get(f"{prefix}temperature")
        if temperature is not None and temperature.ndim == 0:
            state_dict[f"{prefix}temperature"] = temperature.expand(3).clone()
            for name in ("no_image", "no_text"):
                state_dict[prefix + name] = torch.zeros(FEATURE_DIM)
        super()._load_from_state_dict(state_dict, prefix, *others)


def _differs(features: Tensor, absent: Tensor) -> Tensor:
    """(B, 1) bool: whether a row is not the vector that stands for absence, but for rounding.

    No item comes near that vector: a layer norm makes features about ten times as long (quickstart).
    """
    distance = (features - absent).square().sum(dim=1, keepdim=True)
    return distance > 1e-3 * absent.square().sum()
