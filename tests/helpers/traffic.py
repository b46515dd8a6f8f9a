"""Callers that ask a server without pause and keep what became of every call."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from diptych_client import Answer, Client, DiptychError, Retries

Outcome = Answer | DiptychError
NO_RETRIES = Retries(max_attempts=1)
WAIT_S = 90.0


class Traffic:
    """A context manager: inside the `with`, threads call.

    urls        of a server, one after the other dealt to the callers; or for each caller a list of servers
    stops_at    a caller ends after the first outcome of this kind
    outcomes    in the order in which they came
    broken      what ended a caller and is no DiptychError: there must be none
    """

    def __init__(
        self,
        urls: Sequence[str | Sequence[str]],
        *,
        num_callers: int = 8,
        timeout_s: float = 30.0,
        retries: Retries = NO_RETRIES,
        stops_at: type[DiptychError] | None = None,
        pause_s: float = 0.0,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.broken: list[BaseException] = []
        self._timeout_s, self._retries = timeout_s, retries
        self._stops_at, self._pause_s = stops_at, pause_s
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(urls[number % len(urls)],))
            for number in range(num_callers)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "a call has hung"

    def wait_for_answers(self, num: int) -> bool:
        """Until that many more answers have come."""
        start, ends_at_s = len(self.outcomes), time.monotonic() + WAIT_S
        while time.monotonic() < ends_at_s:
            if sum(isinstance(outcome, Answer) for outcome in self.outcomes[start:]) >= num:
                return True
            time.sleep(0.02)
        return False

    def kinds(self) -> Counter[type[Outcome]]:
        return Counter(type(outcome) for outcome in self.outcomes)

    def _guard(self, url: str | Sequence[str]) -> None:
        try:
            self._call(url)
        except BaseException as error:
            self.broken.append(error)

    def _call(self, url: str | Sequence[str]) -> None:
        with Client(url, timeout_s=self._timeout_s, retries=self._retries) as client:
            while not self._is_over.is_set():
                try:
                    self.outcomes.append(client.classify(text="a red cat"))
                except DiptychError as error:
                    self.outcomes.append(error)
                    if self._stops_at is not None and isinstance(error, self._stops_at):
                        return
                time.sleep(self._pause_s)
