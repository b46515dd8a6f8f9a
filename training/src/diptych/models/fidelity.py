"""Whether a text backbone gives a padded text the embedding that transformers gives the text alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.models.text_encoder import PooledBackbone
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Preprocessor

MIN_COSINE = 0.9999
# Of the largest component of all embeddings. Rounding gives 1e-6; a wrong mask gives 1e-2 and more.
MAX_DIFFERENCE = 1e-3
TEXTS = (
    "kite",
    "A red kite, made of paper.",
    "Zwei Äpfel und eine Birne auf einem Tisch, gemalt mit Wasserfarben",
    "红色的风筝",
    "an old map of the coast with harbours, lighthouses and depths, and so on " * 40,
)


def require_fidelity(backbone: PooledBackbone, preprocessor: Preprocessor, name: str) -> None:
    """Compare on texts of several lengths, padded to one.

    raises  UserError that names the model's family, the differences and what to do
    """
    input_ids, attention_mask = (torch.from_numpy(array) for array in preprocessor.tokens(TEXTS))
    rows = attention_mask.any(1)
    input_ids, attention_mask = input_ids[rows], attention_mask[rows]
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode():
            found = backbone(input_ids, attention_mask)
            expected = reference_embeddings(backbone, input_ids, attention_mask)
    except (IndexError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: a model of type '{_family(backbone)}' does not take token ids with a mask: {reason}. "
            "Use a text encoder; docs/backbones.md lists those that work"
        ) from error
    finally:
        backbone.train(was_training)
    require_same(expected, found, f"{name}: as a model of type '{_family(backbone)}'")


@torch.inference_mode()
def reference_embeddings(backbone: PooledBackbone, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What transformers computes: each text by itself, without padding, with its ordinary mask.

    input_ids, attention_mask  (P, L) int64, padded on the right, at least one real token a row
    returns                    (P, D) float32
    """
    pooled = []
    for row, length in zip(input_ids, attention_mask.sum(1).tolist(), strict=True):
        ids = row[:length]
        if backbone.is_padded_to_full_length:
            padded = nn.functional.pad(ids, (0, backbone.full_length - length), value=backbone.pad_id)
            hidden = backbone.encoder(input_ids=padded[None]).last_hidden_state[0]
        else:
            ones = torch.ones_like(ids)[None]
            hidden = backbone.encoder(input_ids=ids[None], attention_mask=ones).last_hidden_state[0]
        if backbone.pooling == "mean":
            pooled.append(hidden[:length].mean(0))
        elif backbone.pooling == "eos":
            eos = ids.max() if backbone.eos_id is None else backbone.eos_id
            ends = (ids == eos).nonzero()
            pooled.append(hidden[ends[0, 0] if len(ends) else length - 1])
        else:
            pooled.append(hidden[0 if backbone.pooling == "cls" else -1])
    embeddings: Tensor = backbone.head(torch.stack(pooled))
    return embeddings


def require_same(expected: Tensor, found: Tensor, name: str) -> None:
    """Two (P, D) float32. Raises UserError with the lowest cosine and the largest difference."""
    cosine = nn.functional.cosine_similarity(expected, found).min().item()
    difference = ((expected - found).abs().max() / expected.abs().max()).item()
    if not (cosine >= MIN_COSINE and difference <= MAX_DIFFERENCE):  # a NaN fails too
        raise UserError(
            f"{name} it gives a padded text another embedding than transformers gives the text alone: cosine "
            f"{cosine:.4f} (accepted: {MIN_COSINE} or more), largest difference {difference:.1e} of the "
            f"largest component (accepted: {MAX_DIFFERENCE:.0e}). Answers would depend on the padding. "
            "Use another text backbone; docs/backbones.md lists those that work"
        )


def _family(backbone: PooledBackbone) -> str:
    return str(backbone.encoder.config.model_type)
