"""From a backbone's embedding to the features that both encoders share, absence included."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURE_DIM = 512


class Projection(nn.Module):
    """Projects the rows that have a modality; gives every other row one learned vector."""

    def __init__(self, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.layers = nn.Sequential(
            nn.LayerNorm(embedding_dim),
            nn.Dropout(dropout),
            nn.Linear(embedding_dim, FEATURE_DIM),
            nn.GELU(),
            nn.LayerNorm(FEATURE_DIM),
        )
        self.absent = nn.Parameter(torch.randn(FEATURE_DIM) * 0.02)

    def forward(self, embeddings: Tensor, present: Tensor) -> Tensor:
        """Scatter P projected rows among the B rows of the batch.

        embeddings  (P, D) float32, the rows where `present`, in order; more rows are left out
        present     (B,) bool
        returns     (B, 512) float32
        """
        rows = present.nonzero().squeeze(1)
        projected = self.layers(embeddings[: rows.size(0)])
        features = self.absent.to(projected.dtype).expand(present.size(0), -1)
        return features.index_copy(0, rows, projected)


def computed_rows(present: Tensor) -> Tensor:
    """The rows that a backbone computes: those that are present, or the first where none is.

    Never zero rows: some transformers cannot compute them, and in OpenVINO 2026.4 ResNet-50 then left the
    answer of the batch before. There is no branch that depends on data, because OpenVINO converts none.

    present       (B,) bool
    returns       (P,) int64, P at least 1 where B is
    """
    is_first = torch.arange(present.size(0), device=present.device) == 0
    return (present | (is_first & ~present.any())).nonzero().squeeze(1)
