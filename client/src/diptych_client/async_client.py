"""The twin of `Client` for asyncio: the same methods, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, TypeVar, Union

from diptych_client import tracing
from diptych_client.answer import Answer
from diptych_client.base_client import READY_TIMEOUT_S, BaseClient
from diptych_client.contract import ServerInfo
from diptych_client.conversation import Health
from diptych_client.endpoint import Address
from diptych_client.errors import DiptychError
from diptych_client.inputs import encode_item
from diptych_client.resolver import resolve_async
from diptych_client.steps import Describe, Infer, Pause, Resolve, Step, Steps, Together
from diptych_client.transport import AsyncTransport, open_async_transport

if TYPE_CHECKING:
    from diptych_client.inputs import ImageInput
    from diptych_client.many import Outcome

T = TypeVar("T")


class AsyncClient(BaseClient[AsyncTransport]):
    """Make one for each event loop, share it between tasks, close it at the end.

    async with AsyncClient("grpc://127.0.0.1:8001") as client:
        answer = await client.classify(image="phone.jpg", text="A modern smartphone")
        print(answer.label, answer.score)
    """

    async def classify(
        self,
        image: ImageInput = None,
        text: Optional[str] = None,
        *,
        timeout_s: Optional[float] = None,
        min_score: Optional[float] = None,
        explain: bool = False,
    ) -> Answer:
        """As `Client.classify`. Files are read and pictures encoded in a thread."""
        deadline = self._start(timeout_s)
        score = self._score_of(min_score)
        if image is None:
            item = encode_item(image, text, self._rules)
        else:
            item = await asyncio.to_thread(encode_item, image, text, self._rules)
        ask = self._conversation.explain if explain else self._conversation.classify
        with tracing.call("classify"):
            return await self._run(ask(*item, deadline, score))

    def classify_many(
        self, items: Union[Iterable[object], AsyncIterable[object]], *, concurrency: int = 32
    ) -> AsyncIterator[Outcome]:
        """As `Client.classify_many`; the items may come from an asynchronous iterable too."""
        from diptych_client.many import classify_many_async

        return classify_many_async(self, items, concurrency=concurrency)

    async def labels(self, *, timeout_s: Optional[float] = None) -> tuple[str, ...]:
        """As `Client.labels`."""
        return (await self._run(self._conversation.labels(self._start(timeout_s)))).names

    async def server_info(self, *, timeout_s: Optional[float] = None) -> ServerInfo:
        """As `Client.server_info`."""
        return await self._run(self._conversation.server_info(self._start(timeout_s)))

    async def health(self, *, deep: bool = False, timeout_s: Optional[float] = None) -> Health:
        """As `Client.health`."""
        return await self._run(self._conversation.health(self._start(timeout_s), deep))

    async def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """As `Client.wait_until_ready`."""
        await self._run(self._conversation.wait_until_ready(self._start(timeout_s)))

    async def close(self) -> None:
        """As `Client.close`."""
        for transport in self._take_all():
            await transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.close()

    def _open(self, address: Address) -> AsyncTransport:
        return open_async_transport(address, self._wire)

    async def _run(self, steps: Steps[T]) -> T:
        """Carry out the steps, until they have their result."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = await self._perform(step)
                except DiptychError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Infer):
            with tracing.attempt(step.address, step.request):
                return await self._transport_to(step.address).infer(step.request, step.deadline)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Together):
            return await self._run_together(step)
        if isinstance(step, Describe):
            return await self._transport_to(step.address).describe(step.deadline)
        if isinstance(step, Resolve):
            for transport in self._take_abandoned():
                await transport.close()
            return await resolve_async(step.endpoint, step.deadline)
        raise AssertionError(step)

    async def _run_together(self, step: Together) -> list[Any]:
        runs = [self._run(part) for part in step.parts]
        outcomes = await asyncio.gather(*runs, return_exceptions=True)  # none goes on after its caller
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes
