"""Which items an epoch takes, in which order, in which batches: pure functions of seed and epoch.

Random numbers of items are drawn for all items at once, so that they depend neither on the number of
processes or workers, nor on interruptions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One batch of one process.

    items      indices into the training items
    step_size  items of the whole optimizer step, in all its micro-batches and processes
    ends_step  whether the optimizer steps after it
    """

    items: list[int]
    step_size: int
    ends_step: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training items.

    chance  (N,) float32 in [0, 1): decides the modality dropout of each item
    """

    number: int
    seed: int
    order: list[int]
    chance: Tensor

    def micro_batches(
        self, *, batch_size: int, accumulate: int, rank: int = 0, num_processes: int = 1
    ) -> list[MicroBatch]:
        """This process's part of the epoch. All processes take the same number of steps.

        A step's items are divided evenly among processes and micro-batches. A last step with too few items is
        dropped; the order differs in each epoch, so every item is used.
        """
        places = num_processes * accumulate
        micro_batches = []
        for start in range(0, len(self.order), batch_size):
            step = self.order[start : start + batch_size]
            if len(step) < places and start > 0:
                break
            shares = [step[place::places] for place in range(places)]
            mine = [share for share in shares[rank::num_processes] if share]
            micro_batches += [
                MicroBatch(items=share, step_size=len(step), ends_step=share is mine[-1]) for share in mine
            ]
        return micro_batches


def plan_epoch(number: int, *, num_items: int, seed: int, weights: Tensor | None = None) -> Epoch:
    """Shuffle the items; with weights, draw the same number with replacement."""
    generator = torch.Generator().manual_seed(seed * 100_003 + number)
    if weights is None:
        order = torch.randperm(num_items, generator=generator)
    else:
        order = torch.multinomial(weights, num_items, replacement=True, generator=generator)
    chance = torch.rand(num_items, generator=generator)
    return Epoch(number=number, seed=seed, order=order.tolist(), chance=chance)


def num_steps(num_items: int, batch_size: int, places: int) -> int:
    """Number of optimizer steps in an epoch."""
    whole, rest = divmod(num_items, batch_size)
    return max(1, whole + (rest >= places)) if num_items else 0


def balancing_weights(truth: Tensor, num_labels: int) -> Tensor:
    """(C,) float32, proportional to one over the root of each label's frequency; 1 on average over items.

    truth  (N,) int64. The square root, because a full inversion amplifies the noise of the rarest label.
    """
    counts = torch.bincount(truth, minlength=num_labels).clamp(min=1).float()
    weights = counts.rsqrt()
    return weights / weights[truth].mean()
