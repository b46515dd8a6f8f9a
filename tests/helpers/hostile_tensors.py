"""Tensors of valid types and shapes that no preprocessor makes, for each step, as strangers can send them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.generic]]
FEATURES = 512
INT64 = np.iinfo(np.int64)


def of_equal_shape(size_px: int, max_tokens: int) -> dict[str, dict[str, Tensors]]:
    """By step and name, one row each, of the shapes that good rows have: Triton joins them into one batch."""
    ids, mask = np.full((1, max_tokens), 5), np.ones((1, max_tokens), np.int64)
    features = np.zeros((1, FEATURES), np.float32)
    middle = mask.copy()
    middle[:, : max_tokens // 2] = 0
    pixels = np.full((1, 3, size_px, size_px), 255, np.uint8)

    def text(ids: NDArray[np.int64] = ids, mask: NDArray[np.int64] = mask, fill: float = 0.0) -> Tensors:
        return {"input_ids": ids, "attention_mask": mask, "image_features": features + np.float32(fill)}

    bad_features = {
        "not a number": features + np.float32(np.nan),
        "infinite": features + np.float32(np.inf),
        "the largest": np.full_like(features, np.finfo(np.float32).max),
    }
    return {
        "image_encoder": {
            "white": {"pixel_values": pixels, "image_present": np.array([[True]])},
            "absent": {"pixel_values": pixels, "image_present": np.array([[False]])},
        },
        "text_encoder": {
            "beyond the vocabulary": text(np.full_like(ids, 10**9)),
            "the largest id": text(np.full_like(ids, INT64.max)),
            "negative ids": text(np.full_like(ids, -1)),
            "the smallest id": text(np.full_like(ids, INT64.min)),
            "a mask of large numbers": text(mask=np.full_like(mask, 2**62)),
            "a negative mask": text(mask=-mask),
            "padding before the text": text(mask=middle),
            "one token, the last": text(mask=np.eye(max_tokens, dtype=np.int64)[-1:]),
            "image features that are no numbers": text(fill=np.nan),
        },
        "fusion_head": {
            f"{name} {which}": {
                "image_features": bad if which == "image" else features,
                "text_features": bad if which == "text" else features,
            }
            for name, bad in bad_features.items()
            for which in ("image", "text")
        },
    }


def of_other_shapes() -> dict[str, dict[str, Tensors]]:
    """By step and name, one row each, of shapes that no good row has."""
    features = np.zeros((1, FEATURES), np.float32)

    def text(num_ids: int, num_masked: int) -> Tensors:
        return {
            "input_ids": np.full((1, num_ids), 10**9),
            "attention_mask": np.ones((1, num_masked), np.int64),
            "image_features": features,
        }

    return {
        "image_encoder": {
            f"{height} x {width}": {
                "pixel_values": np.zeros((1, 3, height, width), np.uint8),
                "image_present": np.array([[True]]),
            }
            for height, width in ((1, 1), (1, 3000), (3000, 2), (2000, 2000))
        },
        "text_encoder": {
            "one token": text(1, 1),
            "100,000 tokens": text(100_000, 100_000),
            "fewer ids than mask": text(2, 900),
            "fewer mask than ids": text(900, 2),
        },
        "fusion_head": {},
    }
