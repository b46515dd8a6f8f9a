"""The traffic: good callers over both wires, hurried ones, one that sends rubbish. Answers are compared."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.soak.ledger import Ledger
from diptych_client import Answer, Client
from diptych_serving.errors import UserError
from diptych_serving.tuning.tune import made_up_mix

# Rows of one batch against a row alone, in other processes: fp32 rounds otherwise, 1e-5 is the parity gate.
MAX_DIFFERENCE = 1e-3
NUM_ITEMS = 8
# Leaves the starting server some of two cores.
PAUSE_S = 0.03
JOIN_S = 60.0
# Longer than a full queue takes: no call over gRPC is to expire, see `Faults`.
TIMEOUT_S = 30.0
RUBBISH = (b"GIF89a" + b"\0" * 20, b"\xff\xd8\xff\xe0" + b"J" * 500, b"no picture at all", b"%PDF-1.7\n" * 9)


@dataclasses.dataclass(frozen=True)
class Known:
    """One item and the probabilities that the repository's own files give it."""

    image: bytes
    text: str
    probabilities: dict[str, float]

    def ask(self, client: Client, timeout_s: float | None = None) -> Answer:
        return client.classify(image=self.image or None, text=self.text or None, timeout_s=timeout_s)

    def is_right(self, answer: Answer) -> bool:
        return answer.probabilities.keys() == self.probabilities.keys() and all(
            abs(answer.probabilities[label] - expected) <= MAX_DIFFERENCE
            for label, expected in self.probabilities.items()
        )


def known_items(repository: Path) -> list[Known]:
    """Items of every kind (both, picture only, words only), answered without a server."""
    items: list[Known] = []
    with Client(f"local:{repository}", timeout_s=60) as local:
        for image, text in made_up_mix()[:NUM_ITEMS]:
            for part in ((image, text), (image, ""), (b"", text)):
                answer = local.classify(image=part[0] or None, text=part[1] or None)
                items.append(Known(*part, answer.probabilities))
    return items


class Callers:
    """A context manager: inside the `with`, they call."""

    def __init__(self, urls: Sequence[str], items: Sequence[Known], ledger: Ledger) -> None:
        self._items, self._ledger = items, ledger
        self._is_over = threading.Event()
        jobs = [(self._call, url) for url in (*urls, *urls)]
        jobs += [(self._call_in_a_hurry, url) for url in urls]
        jobs.append((self._send_rubbish, urls[0]))
        self._threads = [
            threading.Thread(target=self._work, args=(job, url, seed), daemon=True)
            for seed, (job, url) in enumerate(jobs)
        ]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(JOIN_S)
            if thread.is_alive():
                raise UserError("a call did not end: its caller still waits")

    def _work(self, job: Callable[[Client, random.Random], None], url: str, seed: int) -> None:
        chance = random.Random(seed)
        with Client(url, timeout_s=TIMEOUT_S) as client:
            while not self._is_over.is_set():
                job(client, chance)
                time.sleep(PAUSE_S)

    def _call(self, client: Client, chance: random.Random) -> None:
        item = chance.choice(self._items)
        self._ledger.account(lambda: item.ask(client), item.is_right)

    def _call_in_a_hurry(self, client: Client, chance: random.Random) -> None:
        item, timeout_s = chance.choice(self._items), chance.uniform(0.001, 0.2)
        self._ledger.account(lambda: item.ask(client, timeout_s), item.is_right)

    def _send_rubbish(self, client: Client, chance: random.Random) -> None:
        rubbish = chance.choice(RUBBISH)
        self._ledger.account(lambda: client.classify(image=rubbish, text="a swan"), lambda _: False)
