"""Which items an epoch takes, in which order, in which batches: pure functions of seed and epoch.

Everything random about an item is drawn for all items at once, so that it depends neither on how many
processes or workers share the epoch, nor on whether the run was interrupted.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one process puts through the model at once.

    items      indices into the training items
    step_size  items of the whole optimizer step, over all its micro-batches and processes
    ends_step  whether the optimizer steps after it
    """

    items: list[int]
    step_size: int
    ends_step: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training items.

    chance  (N,) float32 in [0, 1): decides what each item loses to modality dropout
    """

    number: int
    seed: int
    order: list[int]
    chance: Tensor

    def micro_batches(
        self, *, batch_size: int, accumulate: int, rank: int = 0, num_processes: int = 1
    ) -> list[MicroBatch]:
        """This process's part of the epoch. All processes take equally many steps.

        A step's items are dealt out to processes and micro-batches as evenly as possible. A last step with
        fewer items than there are places is left out; the order differs in each epoch, so nothing is lost.
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
    """Shuffle the items, or where weights are given draw as many of them with replacement."""
    generator = torch.Generator().manual_seed(seed * 100_003 + number)
    if weights is None:
        order = torch.randperm(num_items, generator=generator)
    else:
        order = torch.multinomial(weights, num_items, replacement=True, generator=generator)
    chance = torch.rand(num_items, generator=generator)
    return Epoch(number=number, seed=seed, order=order.tolist(), chance=chance)


def num_steps(num_items: int, batch_size: int, places: int) -> int:
    """Optimizer steps of an epoch, as `micro_batches` makes them."""
    whole, rest = divmod(num_items, batch_size)
    return max(1, whole + (rest >= places)) if num_items else 0


def balancing_weights(truth: Tensor, num_labels: int) -> Tensor:
    """(C,) float32, proportional to one over the root of each label's frequency; 1 on average over items.

    truth  (N,) int64. The square root because full inversion makes the rarest label's noise the loudest.
    """
    counts = torch.bincount(truth, minlength=num_labels).clamp(min=1).float()
    weights = counts.rsqrt()
    return weights / weights[truth].mean()
