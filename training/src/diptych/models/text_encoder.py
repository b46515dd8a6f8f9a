"""The text encoder: a Hugging Face encoder, pooled, then a projection to 512 features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from diptych.config.sections import Pooling
from diptych.models.projection import Projection, computed_rows

CLIP_TEXT = ("clip_text_model", "metaclip_2_text_model")
SEE_PADDING = ("siglip_text_model", "siglip2_text_model")


class PooledBackbone(nn.Module):
    """A Hugging Face encoder whose output is one vector a text.

    The encoder gets the ordinary mask of two dimensions and makes of it what its architecture needs: causal,
    sliding windows, boolean or additive. Where a text ends in the padding of its batch it must answer as it
    does alone; `fidelity.py` checks it.

    pooling       'mean' over real tokens, the first token ('cls'), the last real one ('last'), or the first
                  end-of-text token ('eos')
    head          what the model's authors apply to the pooled vector, such as CLIP's projection
    architecture  what the encoder is rebuilt from; default: its own config
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        pooling: Pooling,
        head: nn.Module | None = None,
        architecture: PretrainedConfig | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.head = head or nn.Identity()
        self.architecture = architecture or encoder.config
        config = encoder.config
        # SigLIP was trained on texts padded to one length. Its attention sees the padding, and its embedding
        # is that of the last position.
        self.is_padded_to_full_length = config.model_type in SEE_PADDING
        self.full_length = int(getattr(config, "max_position_embeddings", None) or 0)
        self.pad_id = int(getattr(config, "pad_token_id", None) or 0)
        eos = getattr(config, "eos_token_id", None)
        # CLIP's first configs name 2, which is wrong: their end of text is the highest id.
        self.eos_id = None if eos == 2 and config.model_type in CLIP_TEXT else _first(eos)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(P, L) int64, (P, L) int64 -> (P, D) float32"""
        if not self.is_padded_to_full_length:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return self.head(self.pool(hidden, input_ids, attention_mask))
        missing = self.full_length - input_ids.size(1)
        input_ids = F.pad(
            input_ids.masked_fill(attention_mask == 0, self.pad_id), (0, missing), value=self.pad_id
        )
        hidden = self.encoder(input_ids=input_ids).last_hidden_state
        mask = F.pad(attention_mask, (0, missing))
        return self.head(hidden[:, -1] if self.pooling == "last" else self.pool(hidden, input_ids, mask))

    def pool(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(P, L, D) float32, (P, L) int64, (P, L) int64 -> (P, D) float32"""
        if self.pooling == "mean":
            return pool_tokens(hidden, attention_mask)
        if self.pooling == "cls":
            return hidden[:, 0]
        last = (attention_mask.sum(1) - 1).clamp(min=0)
        if self.pooling == "eos":
            eos = input_ids.amax(1, keepdim=True) if self.eos_id is None else self.eos_id
            positions = attention_mask.cumsum(1) - 1
            ends = positions.masked_fill((input_ids != eos) | (attention_mask == 0), input_ids.size(1))
            last = torch.minimum(last, ends.amin(1))
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.size(2))).squeeze(1)


class TextEncoder(nn.Module):
    """Tokens to features; rows without text get a learned vector.

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
        longest = int((attention_mask * positions).max().clamp(min=1))
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
        # A transformer reshapes in a way that needs a row and a column: where no row has a text, it computes
        # one token of the first row, and the projection leaves the result out.
        input_ids, attention_mask = F.pad(input_ids, (0, 1)), F.pad(attention_mask, (0, 1))
        rows = computed_rows(present)
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


def _first(token_id: int | list[int] | None) -> int | None:
    """Some configs name several end-of-text tokens; the first is the one that tokenizers append."""
    return token_id[0] if isinstance(token_id, list) else token_id
