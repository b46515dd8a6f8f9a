"""The client that services hold: it turns items into bytes and carries the conversation to the servers."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from diptych_client import tracing
from diptych_client.answer import Answer
from diptych_client.base_client import DEFAULT_TIMEOUT_S, READY_TIMEOUT_S, BaseClient
from diptych_client.contract import ServerInfo
from diptych_client.conversation import Health
from diptych_client.endpoint import Address
from diptych_client.errors import DiptychError
from diptych_client.inputs import encode_item
from diptych_client.resolver import resolve
from diptych_client.steps import Describe, Infer, Pause, Resolve, Step, Steps, Together
from diptych_client.transport import Transport, open_transport

if TYPE_CHECKING:
    from diptych_client.inputs import ImageInput
    from diptych_client.many import Outcome

__all__ = ["DEFAULT_TIMEOUT_S", "Client"]

T = TypeVar("T")


class Client(BaseClient[Transport]):
    """Make one for each process, share it between threads, close it at the end.

    with Client("grpc://127.0.0.1:8001") as client:
        answer = client.classify(image="phone.jpg", text="A modern smartphone")
        print(answer.label, answer.score)
    """

    def classify(
        self,
        image: ImageInput = None,
        text: Optional[str] = None,
        *,
        timeout_s: Optional[float] = None,
        min_score: Optional[float] = None,
        explain: bool = False,
    ) -> Answer:
        """Classify one item by its image, its text, or both.

        image      a path, an encoded file's bytes, a binary file object, a PIL image, or an (H, W, 3) uint8
                   RGB array. URLs only where the client has a `fetch`.
        text       a few words
        timeout_s  the total time for this call, retries included; None: the client's
        min_score  below this probability the answer's label is None; None: the client's
        explain    also ask about the picture alone and the words alone, for `answer.explanation`
        raises     DiptychError, of the kind that errors.py draws
        """
        deadline = self._start(timeout_s)
        score = self._score_of(min_score)
        item = encode_item(image, text, self._rules)
        ask = self._conversation.explain if explain else self._conversation.classify
        with tracing.call("classify"):
            return self._run(ask(*item, deadline, score))

    def classify_many(
        self, items: Iterable[object], *, concurrency: int = 32
    ) -> Generator[Outcome, None, None]:
        """Classify items from any iterable; yield an answer or an error for each, in order. `many.py` says
        what an item may be."""
        from diptych_client.many import classify_many

        return classify_many(self, items, concurrency=concurrency)

    def labels(self, *, timeout_s: Optional[float] = None) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities, as the server has them now."""
        return self._run(self._conversation.labels(self._start(timeout_s))).names

    def server_info(self, *, timeout_s: Optional[float] = None) -> ServerInfo:
        """Which server this is and which versions of the model it serves."""
        return self._run(self._conversation.server_info(self._start(timeout_s)))

    def health(self, *, deep: bool = False, timeout_s: Optional[float] = None) -> Health:
        """Look once whether the server whose turn it is can answer. The error is in the Health, not raised.

        deep  run an inference: Triton calls a model ready whose Python process has died
        """
        return self._run(self._conversation.health(self._start(timeout_s), deep))

    def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return once an inference is answered.

        raises  DeadlineExceeded with what was last in the way; at once what waiting cannot mend
        """
        self._run(self._conversation.wait_until_ready(self._start(timeout_s)))

    def close(self) -> None:
        """Close the connections. Calls in flight may fail; later ones raise RuntimeError."""
        for transport in self._take_all():
            transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _open(self, address: Address) -> Transport:
        return open_transport(address, self._wire)

    def _run(self, steps: Steps[T]) -> T:
        """Carry out the steps, until they have their result."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = self._perform(step)
                except DiptychError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, step: Step) -> Any:
        if isinstance(step, Infer):
            with tracing.attempt(step.address, step.request):
                return self._transport_to(step.address).infer(step.request, step.deadline)
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Together):
            return self._run_together(step)
        if isinstance(step, Describe):
            return self._transport_to(step.address).describe(step.deadline)
        if isinstance(step, Resolve):
            for transport in self._take_abandoned():
                transport.close()
            return resolve(step.endpoint, step.deadline)
        raise AssertionError(step)

    def _run_together(self, step: Together) -> list[Any]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(step.parts)) as threads:
            return list(threads.map(tracing.carried(self._run), step.parts))
