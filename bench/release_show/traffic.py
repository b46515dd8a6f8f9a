"""Clients that ask without a pause and keep every answer, and what their answers must be."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from diptych_client import Client
from diptych_serving.release.in_process import ask_files
from diptych_serving.repository.layout import read_manifest

Item = tuple[bytes, bytes]
Probabilities = Mapping[str, float]

TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer: when it came, to which of the items, from which version as it says itself."""

    at_s: float
    item: int
    version: int
    probabilities: Probabilities


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed:
    """One call without an answer."""

    at_s: float
    item: int
    error: Exception


class Traffic:
    """Inside the `with`, so many clients ask one item after the other.

    think_s  that each waits after an answer; on few cores it leaves the loading of models some of them
    """

    def __init__(self, url: str, items: Sequence[Item], *, num_clients: int, think_s: float = 0.0) -> None:
        self._url, self._items, self._think_s = url, items, think_s
        self._num_clients = num_clients
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(first,)) for first in range(num_clients)]
        self.answers: list[Answered] = []
        self.failures: list[Failed] = []

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, first: int) -> None:
        number = first
        with Client(self._url, timeout_s=TIMEOUT_S) as client:
            while not self._stop.is_set():
                index = number % len(self._items)
                image, text = self._items[index]
                try:
                    answer = client.classify(image=image or None, text=text.decode())
                except Exception as error:
                    self.failures.append(Failed(at_s=time.monotonic(), item=index, error=error))
                else:
                    self.answers.append(
                        Answered(
                            at_s=time.monotonic(),
                            item=index,
                            version=int(answer.model_version),
                            probabilities=answer.probabilities,
                        )
                    )
                number += self._num_clients
                self._stop.wait(self._think_s)


def expect(
    repository: Path, versions: Sequence[int], items: Sequence[Item]
) -> dict[int, list[Probabilities]]:
    """What each version says to each item, by its own labels: computed in this process, from its files."""
    expected = {}
    for version in versions:
        labels, ask = read_manifest(repository, version)["labels"], ask_files(repository, version)
        expected[version] = [
            dict(zip(labels, ask(image, text).tolist(), strict=True)) for image, text in items
        ]
    return expected


def find_strays(
    answers: Sequence[Answered], expected: Mapping[int, Sequence[Probabilities]], tolerance: float
) -> list[Answered]:
    """Answers that are not what the version that they name says, in labels, their order and values."""
    return [
        answer
        for answer in answers
        if answer.version not in expected
        or not _agrees(answer.probabilities, expected[answer.version][answer.item], tolerance)
    ]


def _agrees(found: Probabilities, expected: Probabilities, tolerance: float) -> bool:
    return list(found) == list(expected) and all(
        abs(found[label] - expected[label]) <= tolerance for label in expected
    )
