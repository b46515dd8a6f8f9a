"""Augments images and texts in training, without changes that could change the label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from diptych.config.sections import AugmentConfig
from diptych.models.classifier import Inputs

WHITE = 255


class AugmentedItems(Dataset[tuple[Inputs, int]]):
    """Items of another dataset, augmented with a random state from seed, epoch and index."""

    def __init__(self, items: Dataset[tuple[Inputs, int]], config: AugmentConfig, *, seed: int, epoch: int):
        self._items = items
        self._config = config
        self._seed = seed * 100_003 + epoch
        self._vary = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomAffine(
                    degrees=12,
                    translate=(0.06, 0.06),
                    scale=(0.8, 1.15),
                    shear=6,
                    interpolation=InterpolationMode.BILINEAR,
                    fill=WHITE,
                ),
                v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3),
            ]
        )

    def __getitem__(self, index: int) -> tuple[Inputs, int]:
        inputs, label = self._items[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed * 1_000_003 + index)
            if self._config.pictures and inputs.image_present.all():
                inputs = inputs._replace(pixel_values=self._vary(inputs.pixel_values))
            if self._config.word_dropout:
                input_ids, attention_mask = drop_tokens(
                    inputs.input_ids, inputs.attention_mask, self._config.word_dropout
                )
                inputs = inputs._replace(input_ids=input_ids, attention_mask=attention_mask)
        return inputs, label


def drop_tokens(input_ids: Tensor, attention_mask: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Drop a random share of each text's tokens and close the gaps.

    The first and the last token, which mark the text's ends, stay, and at least one between them.

    input_ids, attention_mask  (B, L) int64, padding on the right
    """
    lengths = attention_mask.sum(1, keepdim=True)
    position = torch.arange(input_ids.size(1)).expand_as(input_ids)
    is_inner = (position > 0) & (position < lengths - 1)
    score = torch.rand(input_ids.shape).masked_fill(~is_inner, -1)
    is_spared = score == score.max(dim=1, keepdim=True).values
    keep = (attention_mask == 1) & (~is_inner | (score >= rate) | is_spared)
    order = (~keep).long().argsort(dim=1, stable=True)  # kept tokens first, in their order
    mask = keep.long().gather(1, order)
    return input_ids.gather(1, order) * mask, mask
