"""`Client` and `AsyncClient`, and the base that holds all they share.

They turn items into bytes and carry out the steps of `_conversation.py`. All decisions lie there.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from diptych_client import _tracing
from diptych_client._answer import Answer, Outcome, ServerInfo
from diptych_client._conversation import (
    Conversation,
    Describe,
    Exchange,
    Health,
    Infer,
    Pause,
    Resolve,
    Step,
    Steps,
    Together,
)
from diptych_client._errors import ConnectionFailed, DiptychError, InvalidInput
from diptych_client._headers import GivenHeaders, Headers
from diptych_client._inputs import Fetch, ImageInput, InputRules, Limits, encode_item
from diptych_client._retries import Deadline, Retries
from diptych_client._servers import LOCAL, Address, parse_urls, resolve, resolve_async
from diptych_client._tls import Tls
from diptych_client._transports import AsyncTransport, Transport, Wire, open_async_transport, open_transport

# An answer takes tens of milliseconds; a caller who waits for five seconds has an outage, not a slow answer.
DEFAULT_TIMEOUT_S = 5.0
# A server loads its models in seconds to minutes.
READY_TIMEOUT_S = 120.0


AnyTransport = TypeVar("AnyTransport")
Classified = TypeVar("Classified")
AnyClient = TypeVar("AnyClient", bound="Client")
AnyAsyncClient = TypeVar("AnyAsyncClient", bound="AsyncClient")


class BaseClient(abc.ABC, Generic[AnyTransport]):
    """Not for use by itself: `Client` and `AsyncClient` carry out what it decides."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: GivenHeaders = None,
        tls: Tls | None = None,
        retries: Retries | None = None,
        min_score: float = 0.0,
        shrink_to_px: int | None = None,
        limits: Limits | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        """Opens no connection yet; a local repository is loaded at once.

        url           grpc://host:port or http://host:port, grpcs:// or https:// for TLS, local:PATH to run an
                      exported repository in this process; or a list of URLs, to be used in turn
        timeout_s     the total time that one call may take, retries included, unless the call says otherwise
        headers       sent with every request: a mapping, or a function that returns one for each request
        tls           whom to trust and who we are, for grpcs:// and https://
        retries       how failed requests are sent again; Retries(max_attempts=1): never
        min_score     below this probability an answer's label is None, unless the call says otherwise
        shrink_to_px  scale pictures down to this longest side before sending. Off by default: the answer to
                      a scaled picture differs a little. Twice the model's image size loses next to nothing
        limits        what is refused before sending
        fetch         gets the bytes behind a URL. Without it URLs are refused: whoever fetches what strangers
                      name can be led into the private network (server-side request forgery)
        raises        InvalidInput
        """
        Deadline(timeout_s)  # refuses what is no time
        self._endpoints = parse_urls(url)
        self._timeout_s = timeout_s
        self._min_score = _checked_score(min_score)
        self._rules = InputRules(limits or Limits(), shrink_to_px, fetch)
        self._wire = Wire(Headers(headers), tls)
        exchange = Exchange(self._endpoints, retries or Retries(), self._wire.headers.redact)
        self._conversation = Conversation(exchange)
        self._balancer = exchange.balancer
        self._is_closed = False
        self._transports: dict[Address, AnyTransport] = {}
        self._lock = threading.Lock()
        for endpoint in self._endpoints:
            if endpoint.scheme == LOCAL:
                self._transport_to(Address(endpoint, endpoint.host))

    @abc.abstractmethod
    def _open(self, address: Address) -> AnyTransport: ...

    def _transport_to(self, address: Address) -> AnyTransport:
        transport = self._transports.get(address)
        if transport is None:
            with self._lock:
                if self._is_closed:  # under a call in flight
                    raise ConnectionFailed(f"{address}: the client was closed")
                transport = self._transports.get(address) or self._open(address)
                self._transports[address] = transport
        return transport

    def _take_abandoned(self) -> list[AnyTransport]:
        """Remove the transports to addresses that their name no longer stood for when it was last looked up:
        calls that were in flight then have ended since."""
        with self._lock:
            gone = set(self._transports).difference(self._balancer.addresses)
            return [self._transports.pop(address) for address in gone]

    def _take_all(self) -> list[AnyTransport]:
        """Remove all transports, for good."""
        with self._lock:
            self._is_closed = True
            transports = list(self._transports.values())
            self._transports.clear()
            return transports

    def __repr__(self) -> str:
        urls = [str(endpoint) for endpoint in self._endpoints]
        shown = repr(urls[0] if len(urls) == 1 else urls)
        return f"{type(self).__name__}({shown}, timeout_s={self._timeout_s:g})"

    def _start(self, timeout_s: float | None) -> Deadline:
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed")
        return Deadline(self._timeout_s if timeout_s is None else timeout_s)

    def _classify_each(
        self,
        classify: Callable[..., Classified],
        timeout_s: float | None,
        min_score: float | None,
        explain: bool,
    ) -> Callable[..., Classified]:
        """`classify` with the arguments that all items of `classify_many` share; they are checked at once."""
        self._start(timeout_s)
        self._score_of(min_score)
        return functools.partial(classify, timeout_s=timeout_s, min_score=min_score, explain=explain)

    def _score_of(self, min_score: float | None) -> float:
        return self._min_score if min_score is None else _checked_score(min_score)


def _checked_score(min_score: float) -> float:
    if not 0 <= min_score <= 1:
        raise InvalidInput.refusing("min_score", repr(min_score), "a probability, 0 to 1")
    return min_score


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
        text: str | None = None,
        *,
        timeout_s: float | None = None,
        min_score: float | None = None,
        explain: bool = False,
    ) -> Answer:
        """Classify one item by its image, its text, or both.

        image      a path, an encoded file's bytes, a binary file object, a PIL image, or an (H, W, 3) uint8
                   RGB array. URLs only where the client has a `fetch`.
        text       a few words
        timeout_s  the total time for this call, retries included; None: the client's
        min_score  below this probability the answer's label is None; None: the client's
        explain    also ask about the image alone and the text alone, for `answer.explanation`
        raises     DiptychError, of the kind that `_errors.py` draws
        """
        deadline = self._start(timeout_s)
        score = self._score_of(min_score)
        item = encode_item(image, text, self._rules)
        ask = self._conversation.explain if explain else self._conversation.classify
        with _tracing.call("classify"):
            return self._run(ask(*item, deadline, score))

    def classify_many(
        self,
        items: Iterable[object],
        *,
        concurrency: int = 32,
        timeout_s: float | None = None,
        min_score: float | None = None,
        explain: bool = False,
        ordered: bool = True,
    ) -> Generator[Outcome, None, None]:
        """Classify items from any iterable, also one without end; yield an answer or an error for each.

        items        each a mapping with the keys 'image' and 'text' (`Item`), or an object with these
                     attributes, such as a dataclass; either may be missing or None. Other keys and attributes
                     are left alone. Taken as needed, in the caller's thread: at most 2 * concurrency items
                     are held at a time.
        concurrency  calls at once. Each item is a request of its own: the server makes batches of them.
        timeout_s    the time for each item, as in `classify`; so are `min_score` and `explain`
        ordered      yield in the order of the items; False: as they are answered
        yields       Outcome, with the index of its item
        raises       InvalidInput for an argument; whatever `items` itself raises

        A consumer that stops early closes the generator; leaving a `for` loop does, where nothing else holds
        the generator. That waits for the calls in flight, and leaves no thread behind.
        """
        from diptych_client._many import classify_many

        classify = self._classify_each(self.classify, timeout_s, min_score, explain)
        return classify_many(classify, items, concurrency=concurrency, ordered=ordered)

    def labels(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities, as the server has them now."""
        return self._run(self._conversation.labels(self._start(timeout_s))).names

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Which server this is and which versions of the model it serves."""
        return self._run(self._conversation.server_info(self._start(timeout_s)))

    def health(self, *, deep: bool = False, timeout_s: float | None = None) -> Health:
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

    def __enter__(self: AnyClient) -> AnyClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
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
            with _tracing.attempt(step.address, step.request):
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
            return list(threads.map(_tracing.carried(self._run), step.parts))


class AsyncClient(BaseClient[AsyncTransport]):
    """Make one for each event loop, share it between tasks, close it at the end.

    async with AsyncClient("grpc://127.0.0.1:8001") as client:
        answer = await client.classify(image="phone.jpg", text="A modern smartphone")
        print(answer.label, answer.score)
    """

    async def classify(
        self,
        image: ImageInput = None,
        text: str | None = None,
        *,
        timeout_s: float | None = None,
        min_score: float | None = None,
        explain: bool = False,
    ) -> Answer:
        """As `Client.classify`. Files are read and images encoded in a thread."""
        deadline = self._start(timeout_s)
        score = self._score_of(min_score)
        if image is None:
            item = encode_item(image, text, self._rules)
        else:
            item = await asyncio.to_thread(encode_item, image, text, self._rules)
        ask = self._conversation.explain if explain else self._conversation.classify
        with _tracing.call("classify"):
            return await self._run(ask(*item, deadline, score))

    def classify_many(
        self,
        items: Iterable[object] | AsyncIterable[object],
        *,
        concurrency: int = 32,
        timeout_s: float | None = None,
        min_score: float | None = None,
        explain: bool = False,
        ordered: bool = True,
    ) -> AsyncIterator[Outcome]:
        """As `Client.classify_many`; the items may come from an asynchronous iterable too.

        A consumer that may stop early wraps it in `contextlib.aclosing`, as any asynchronous generator: the
        calls in flight are then cancelled at once.
        """
        from diptych_client._many import classify_many_async

        classify = self._classify_each(self.classify, timeout_s, min_score, explain)
        return classify_many_async(classify, items, concurrency=concurrency, ordered=ordered)

    async def labels(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """As `Client.labels`."""
        return (await self._run(self._conversation.labels(self._start(timeout_s)))).names

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """As `Client.server_info`."""
        return await self._run(self._conversation.server_info(self._start(timeout_s)))

    async def health(self, *, deep: bool = False, timeout_s: float | None = None) -> Health:
        """As `Client.health`."""
        return await self._run(self._conversation.health(self._start(timeout_s), deep))

    async def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """As `Client.wait_until_ready`."""
        await self._run(self._conversation.wait_until_ready(self._start(timeout_s)))

    async def close(self) -> None:
        """As `Client.close`."""
        for transport in self._take_all():
            await transport.close()

    async def __aenter__(self: AnyAsyncClient) -> AnyAsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
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
            with _tracing.attempt(step.address, step.request):
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
