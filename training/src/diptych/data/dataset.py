"""Items of a table as tensors, with the same preprocessing as the server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diptych.data.items import Item, UnusableItem
from diptych.models.classifier import Embeddings, Inputs
from diptych_serving.preprocessing import InvalidInput, Preprocessor, Row

Batch = tuple[Inputs, Tensor]


class ItemDataset(Dataset[tuple[Inputs, int]]):
    """Reads and preprocesses an item on access."""

    def __init__(self, items: Sequence[Item], labels: Sequence[str], preprocessor: Preprocessor):
        self._items = items
        self._label_index = {label: index for index, label in enumerate(labels)}
        self._preprocessor = preprocessor

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Inputs, int]:
        item = self._items[index]
        (row,) = self._preprocessor.rows([(item.read_image(), item.text.encode())])
        if isinstance(row, InvalidInput):
            raise UnusableItem(f"{item.place}: {row}")
        return to_inputs([row]), self._label_index[item.category]


class EmbeddedItems(Dataset[tuple[Embeddings, Tensor]]):
    """Embeddings that are in memory, indexed by a whole batch at once."""

    def __init__(self, embeddings: Embeddings, truth: Tensor):
        self._embeddings = embeddings
        self._truth = truth

    def __len__(self) -> int:
        return len(self._truth)

    def __getitem__(self, index: list[int]) -> tuple[Embeddings, Tensor]:
        return self._embeddings.rows(torch.tensor(index)), self._truth[index]


def to_inputs(rows: Sequence[Row]) -> Inputs:
    """Stack rows to a batch."""
    return Inputs(
        pixel_values=torch.stack([torch.from_numpy(row.pixel_values) for row in rows]),
        image_present=torch.tensor([row.image_present for row in rows]),
        input_ids=torch.stack([torch.from_numpy(row.input_ids) for row in rows]),
        attention_mask=torch.stack([torch.from_numpy(row.attention_mask) for row in rows]),
    )


def load_batches(dataset: Dataset[tuple[Inputs, int]], num_workers: int, **batching: Any) -> Iterator[Batch]:
    """The batches, loaded by worker processes.

    batching  batch_size or batch_sampler, as DataLoader takes them
    """
    loader = DataLoader(dataset, num_workers=num_workers, collate_fn=collate, **batching)
    for arrays, labels in loader:
        yield Inputs(*map(torch.from_numpy, arrays)), torch.from_numpy(labels)


def collate(samples: Sequence[tuple[Inputs, int]]) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """Join items to a batch of arrays, in the order of Inputs, and their labels.

    Arrays, because a worker sends them through a pipe. Tensors would go through /dev/shm, which has 64 MB
    in a container; if it is full, workers are killed and their parent waits forever.
    """
    columns = zip(*(inputs for inputs, _ in samples), strict=True)
    arrays = [torch.cat(tensors).numpy() for tensors in columns]
    return arrays, np.array([label for _, label in samples], np.int64)
