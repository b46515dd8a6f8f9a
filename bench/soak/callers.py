"""The traffic: good callers over both wires, callers with short deadlines, one that sends bad items."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.soak.ledger import Ledger, WrongAnswer
from diptych_client import Answer, Client, Retries
from diptych_serving.traffic import ClosedLoop, Send
from diptych_serving.tuning.tune import made_up_mix

# Rows of one batch against a row alone, in other processes: fp32 rounds otherwise, 1e-5 is the parity gate.
MAX_DIFFERENCE = 1e-3
NUM_ITEMS = 8
# Leaves the starting server some of two cores.
PAUSE_S = 0.03
# Drawn once and sent in turn.
NUM_REQUESTS = 1000
# Longer than a full queue takes: no call over gRPC is to expire, see `Faults`.
TIMEOUT_S = 30.0
RUBBISH = (b"GIF89a" + b"\0" * 20, b"\xff\xd8\xff\xe0" + b"J" * 500, b"no image at all", b"%PDF-1.7\n" * 9)


@dataclasses.dataclass(frozen=True)
class Known:
    """One item and the probabilities that the repository's own files give it."""

    image: bytes
    text: str
    probabilities: dict[str, float]

    def check(self, answer: Answer) -> None:
        """Raises WrongAnswer."""
        is_right = answer.probabilities.keys() == self.probabilities.keys() and all(
            abs(answer.probabilities[label] - expected) <= MAX_DIFFERENCE
            for label, expected in self.probabilities.items()
        )
        if not is_right:
            raise WrongAnswer(f"{answer.label} {answer.probabilities}")


class Request(NamedTuple):
    """timeout_s  None: the client's"""

    item: Known
    timeout_s: float | None = None


@contextlib.contextmanager
def asking(url: str, retries: Retries | None = None) -> Iterator[Send[Request]]:
    """A client whose answers are checked."""
    with Client(url, timeout_s=TIMEOUT_S, retries=retries or Retries()) as client:

        def ask(request: Request) -> None:
            item = request.item
            item.check(
                client.classify(image=item.image or None, text=item.text or None, timeout_s=request.timeout_s)
            )

        yield ask


def known_items(repository: Path) -> list[Known]:
    """Items of every kind (both, image only, text only), answered without a server."""
    items: list[Known] = []
    with Client(f"local:{repository}", timeout_s=60) as local:
        for image, text in made_up_mix()[:NUM_ITEMS]:
            for part in ((image, text), (image, ""), (b"", text)):
                answer = local.classify(image=part[0] or None, text=part[1] or None)
                items.append(Known(*part, answer.probabilities))
    return items


class Callers:
    """A context manager: inside the `with`, they call; at its end their calls go into the ledger."""

    def __init__(self, urls: Sequence[str], items: Sequence[Known], ledger: Ledger) -> None:
        chance = random.Random(0)
        normal = [Request(chance.choice(items)) for _ in range(NUM_REQUESTS)]
        hurried = [Request(item, chance.uniform(0.001, 0.2)) for item, _ in normal]
        rubbish = [Request(Known(data, "a swan", {})) for data in RUBBISH]
        jobs = [((*urls, *urls), normal), (urls, hurried), (urls[:1], rubbish)]
        self._ledger = ledger
        self._loops = [
            ClosedLoop(
                [functools.partial(asking, url) for url in those],
                requests,
                pause_s=PAUSE_S,
                keeps_results=False,
            )
            for those, requests in jobs
        ]

    def __enter__(self) -> Callers:
        self._stack = contextlib.ExitStack()
        for loop in self._loops:
            self._stack.enter_context(loop)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stack.close()
        finally:
            for loop in self._loops:
                self._ledger.enter(loop.num_begun, loop.calls)
