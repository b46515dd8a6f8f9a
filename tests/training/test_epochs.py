"""Which items an epoch takes, and how they are dealt out."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from diptych.config.sections import AugmentConfig
from diptych.models.classifier import Inputs
from diptych.train.augmentation import AugmentedItems, drop_tokens
from diptych.train.epochs import balancing_weights, num_steps, plan_epoch


@pytest.mark.parametrize(("num_processes", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2)])
@pytest.mark.parametrize("num_items", [5, 40, 47])
def test_processes_and_micro_batches_share_an_epoch_without_loss_or_repetition(
    num_items: int, num_processes: int, accumulate: int
) -> None:
    epoch = plan_epoch(1, num_items=num_items, seed=0)
    shares = [
        epoch.micro_batches(batch_size=8, accumulate=accumulate, rank=rank, num_processes=num_processes)
        for rank in range(num_processes)
    ]
    steps = num_steps(num_items, 8, num_processes * accumulate)
    assert [sum(part.ends_step for part in share) for share in shares] == [steps] * num_processes
    taken = [item for share in shares for part in share for item in part.items]
    assert len(set(taken)) == len(taken)
    assert set(taken) == set(epoch.order[: len(taken)])
    assert num_items - len(taken) < num_processes * accumulate


def test_the_plan_of_an_epoch_depends_on_seed_and_number_alone() -> None:
    assert plan_epoch(3, num_items=50, seed=1).order == plan_epoch(3, num_items=50, seed=1).order
    assert plan_epoch(3, num_items=50, seed=1).order != plan_epoch(4, num_items=50, seed=1).order
    assert plan_epoch(3, num_items=50, seed=1).order != plan_epoch(3, num_items=50, seed=2).order


def test_balancing_weights_favour_rare_labels_and_average_to_one() -> None:
    truth = torch.tensor([0] * 64 + [1] * 16 + [2] * 4)
    weights = balancing_weights(truth, 4)
    assert weights[1] / weights[0] == pytest.approx(2)
    assert weights[2] / weights[0] == pytest.approx(4)
    assert weights[truth].mean() == pytest.approx(1)


def test_weighted_sampling_draws_rare_items_more_often() -> None:
    truth = torch.tensor([0] * 900 + [1] * 100)
    weights = balancing_weights(truth, 2)[truth]
    drawn = truth[plan_epoch(1, num_items=1000, seed=0, weights=weights).order]
    assert 200 < int(drawn.sum()) < 300  # a quarter, where a tenth is there


def test_dropping_tokens_keeps_the_ends_the_order_and_at_least_one_word() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([[3], [8], [12]])
    mask = (torch.arange(12) < lengths).long()
    ids = (torch.arange(12) + 5).expand(3, -1) * mask
    for _ in range(50):
        kept, kept_mask = drop_tokens(ids, mask, 0.5)
        for row, row_mask, length in zip(kept, kept_mask, lengths.squeeze(1), strict=True):
            tokens = row[row_mask == 1].tolist()
            assert tokens[0] == 5
            assert tokens[-1] == 4 + length
            assert len(tokens) >= 3
            assert tokens == sorted(tokens)
            assert row[row_mask == 0].tolist() == [0] * (12 - len(tokens))


class OnePicture(Dataset[tuple[Inputs, int]]):
    """The same item at every index."""

    def __getitem__(self, index: int) -> tuple[Inputs, int]:
        pixels = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
        pixels[:, :, 8:20, 4:16] = 0
        ids = torch.tensor([[2, 5, 6, 7, 8, 3, 0, 0]])
        return Inputs(pixels, torch.ones(1, dtype=torch.bool), ids, (ids > 0).long()), 1


def test_augmentation_is_decided_by_seed_epoch_and_index() -> None:
    config = AugmentConfig(pictures=True, word_dropout=0.3)
    view = AugmentedItems(OnePicture(), config, seed=0, epoch=1)
    pixels = view[3][0].pixel_values
    assert pixels.dtype == torch.uint8
    torch.manual_seed(99)  # whatever the global state
    assert torch.equal(view[3][0].pixel_values, pixels)
    assert not torch.equal(view[4][0].pixel_values, pixels)
    later = AugmentedItems(OnePicture(), config, seed=0, epoch=2)
    assert not torch.equal(later[3][0].pixel_values, pixels)


def test_without_augmentation_items_are_as_they_are() -> None:
    view = AugmentedItems(OnePicture(), AugmentConfig(), seed=0, epoch=1)
    for found, expected in zip(view[0][0], OnePicture()[0][0], strict=True):
        assert torch.equal(found, expected)
