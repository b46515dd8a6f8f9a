"""`Client` and `AsyncClient`, and their common base.

They turn items into bytes and carry out the steps of `_exchange.py`, which makes all decisions.
"""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import contextvars
import functools
import os
import re
import threading
import time
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import Any, Generic, TypeVar

from diptych_client import _tracing
from diptych_client._answer import Answer, Outcome, ServerInfo
from diptych_client._conversation import Conversation, Health, Question
from diptych_client._environment import DEFAULT_URL, headers_of, timeout_of, tls_of
from diptych_client._errors import ConnectionFailed, DiptychError, InvalidInput
from diptych_client._exchange import (
    Alone,
    Describe,
    Exchange,
    Infer,
    Pause,
    Resolve,
    Step,
    Steps,
    Together,
)
from diptych_client._headers import GivenHeaders, Headers, checked_headers
from diptych_client._inputs import Fetch, ImageInput, InputRules, encode_item, is_at_hand
from diptych_client._limits import Limits
from diptych_client._retries import Deadline, Retries, is_number
from diptych_client._servers import LOCAL, Address, Resolver, parse_urls
from diptych_client._tls import Tls
from diptych_client._transports import (
    AsyncTransport,
    Attempt,
    Transport,
    open_async_transport,
    open_transport,
)

# An answer takes tens of milliseconds; after five seconds it is an outage.
DEFAULT_TIMEOUT_S = 5.0
# A server loads its models in seconds to minutes.
READY_TIMEOUT_S = 120.0

# Triton logs it, and it is sent unchanged over HTTP and gRPC.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

T = TypeVar("T")
AnyTransport = TypeVar("AnyTransport", Transport, AsyncTransport)
Classified = TypeVar("Classified")
AnyBase = TypeVar("AnyBase", bound="BaseClient[Any]")
AnyClient = TypeVar("AnyClient", bound="Client")
AnyAsyncClient = TypeVar("AnyAsyncClient", bound="AsyncClient")


class BaseClient(abc.ABC, Generic[AnyTransport]):
    """Not for direct use: the base of `Client` and `AsyncClient`."""

    _is_async: bool

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
        """Does not connect yet; loads a local repository at once.

        url           grpc://host:port or http://host:port, grpcs:// or https:// for TLS, local:PATH to run an
                      exported repository in this process; or a list of URLs, to be used in turn. An HTTP
                      URL may have a path, the gateway's prefix of /v2: https://gateway/models/diptych
        timeout_s     the total time of a call, retries included, unless the call gives its own
        headers       sent with every request: a mapping, or a function that returns one for each request. In
                      AsyncClient it may be asynchronous; others are called in a thread
        tls           the trusted authorities and the client certificate, for grpcs:// and https://
        retries       how failed requests are sent again; Retries(max_attempts=1): never
        min_score     below this probability an answer's label is None, unless the call gives its own
        shrink_to_px  scale images down to this longest side before sending. Off by default, because
                      answers change slightly. With twice the model's image size almost nothing is lost
        limits        items above these are refused or converted before sending
        fetch         a function from a URL to bytes. Without it URLs are refused: a service that fetches
                      strangers' URLs can be led into the private network (server-side request forgery)
        raises        InvalidInput
        """
        self._given: dict[str, Any] = {
            "url": url,
            "timeout_s": timeout_s,
            "headers": headers,
            "tls": tls,
            "retries": retries,
            "min_score": min_score,
            "shrink_to_px": shrink_to_px,
            "limits": limits,
            "fetch": fetch,
        }
        for name, kind in (("tls", Tls), ("retries", Retries), ("limits", Limits)):
            value = self._given[name]
            if value is not None and not isinstance(value, kind):
                raise InvalidInput.refusing(name, repr(value), f"{kind.__name__}(...), or None")
        if fetch is not None and not callable(fetch):
            raise InvalidInput.refusing("fetch", repr(fetch), "a function from a URL to bytes, or None")
        Deadline(timeout_s)  # refuses what is no time
        self._endpoints = parse_urls(url)
        self._timeout_s = timeout_s
        self._min_score = _checked_score(min_score)
        self._rules = InputRules(limits or Limits(), shrink_to_px, fetch)
        self._headers = Headers(headers, may_be_async=self._is_async)
        self._tls = tls
        self._retries = retries or Retries()
        self._is_closed = False
        self._transports: dict[Address, AnyTransport] = {}
        self._start_anew()
        for endpoint in self._endpoints:
            if endpoint.scheme == LOCAL:
                self._transport_to(Address(endpoint, endpoint.host))
        _CLIENTS.add(self)

    @classmethod
    def from_env(cls: type[AnyBase], **arguments: Any) -> AnyBase:
        """A client as the environment configures it: DIPTYCH_URL, DIPTYCH_TIMEOUT_S, DIPTYCH_HEADERS,
        DIPTYCH_CA_FILE, DIPTYCH_CERTIFICATE_FILE and DIPTYCH_KEY_FILE, as `diptych-client --help` explains
        them.

        arguments  of the constructor; they override the environment
        """
        given = dict(arguments)
        given.setdefault("url", os.environ.get("DIPTYCH_URL") or DEFAULT_URL)
        given.setdefault("headers", headers_of(os.environ))
        given.setdefault("tls", tls_of(os.environ))
        timeout_s = timeout_of(os.environ)
        if timeout_s is not None:
            given.setdefault("timeout_s", timeout_s)
        return cls(**given)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, deepcopy and spawned processes get a new client with the same arguments. The pickle
        contains
        `headers`."""
        return _reconstruct, (type(self), self._given)

    def _start_anew(self) -> None:
        """Start with new connections, locks, threads and server states: at first, and in a forked child,
        where
        connections belong to the parent and locks may be held by threads that do not exist."""
        exchange = Exchange(self._endpoints, self._retries, self._headers.redact)
        self._conversation = Conversation(exchange)
        self._balancer = exchange.balancer
        self._resolver = Resolver(self._balancer.update)
        self._lock = threading.Lock()
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._transports = {
            address: transport
            for address, transport in self._transports.items()
            if address.scheme == LOCAL or not self._abandon(transport)
        }

    @abc.abstractmethod
    def _open(self, address: Address) -> AnyTransport: ...

    @abc.abstractmethod
    def _abandon(self, transport: AnyTransport) -> bool:
        """Abandon the parent's connections in a forked child. Returns True."""
        ...

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
        """Remove the transports to addresses that were missing in the last look-up of their name: calls that
        were in flight then have ended."""
        with self._lock:
            gone = set(self._transports).difference(self._balancer.addresses)
            return [self._transports.pop(address) for address in gone]

    def _take_all(self) -> list[AnyTransport]:
        """Remove all transports, for good."""
        with self._lock:
            self._is_closed = True
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
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
        """`classify` with the common arguments of `classify_many`, which are checked at once."""
        self._start(timeout_s)
        self._score_of(min_score)
        return functools.partial(classify, timeout_s=timeout_s, min_score=min_score, explain=explain)

    def _score_of(self, min_score: float | None) -> float:
        return self._min_score if min_score is None else _checked_score(min_score)

    def _in_thread(self, work: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Run blocking work in a thread of this client, with the caller's context variables."""
        with self._lock:
            if self._threads is None and not self._is_closed:
                self._threads = concurrent.futures.ThreadPoolExecutor(
                    max_workers=32, thread_name_prefix="diptych-client"
                )
            threads = self._threads
        future: concurrent.futures.Future[T]
        try:
            if threads is None:
                raise RuntimeError
            return threads.submit(contextvars.copy_context().run, work)
        except RuntimeError:  # the client is closed or the interpreter ends: no more threads
            future = concurrent.futures.Future()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            return future


# Clients that start again in a forked child.
_CLIENTS: weakref.WeakSet[BaseClient[Any]] = weakref.WeakSet()


def _start_all_anew() -> None:
    for client in list(_CLIENTS):
        client._start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_anew)


class Client(BaseClient[Transport]):
    """Make one for each process, share it between threads, close it at the end. A forked process may use its
    parent's client, which opens new connections there.

    with Client("grpc://127.0.0.1:8001") as client:
        answer = client.classify(image="phone.jpg", text="A modern smartphone")
        print(answer.label, answer.score)
    """

    _is_async = False

    def classify(
        self,
        image: ImageInput = None,
        text: str | None = None,
        *,
        timeout_s: float | None = None,
        min_score: float | None = None,
        explain: bool = False,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """Classify one item by its image, its text, or both.

        image       a path, an encoded file's bytes, a binary file object, a PIL image, or an (H, W, 3) uint8
                    RGB array. URLs only if the client has a `fetch`.
        text        the item's text, or None
        timeout_s   the total time for this call, reading the image and retries included; None: the client's
        min_score   below this probability the answer's label is None; None: the client's
        explain     also ask about the image alone and the text alone, for `answer.explanation`
        headers     only for this call; they override the client's
        request_id  the request's id in the server's logs and traces; None: a random one. Unique for each
                    call, because answers are matched by it
        raises      DiptychError; `_errors.py` shows the kinds
        """
        deadline = self._start(timeout_s)
        score = self._score_of(min_score)
        own, name = checked_headers(headers), _checked_request_id(request_id)
        question = Question(*self._encode(image, text, deadline), deadline, score, own, name)
        ask = self._conversation.explain if explain else self._conversation.classify
        with _tracing.call("classify"):
            return self._run(ask(question))

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
        """Classify items from any iterable, also an endless one; yield an answer or an error for each.

        items        each a mapping with the keys 'image' and 'text' (`Item`), or an object with these
                     attributes, such as a dataclass; either may be missing or None. Other keys and attributes
                     are ignored. Items are taken as needed, in the caller's thread; at most
                     2 * concurrency are held at a time.
        concurrency  calls in flight. Each item is its own request; the server batches them.
        timeout_s    the time for each item, as in `classify`; so are `min_score` and `explain`
        ordered      yield in the order of the items; False: as they are answered
        yields       Outcome, with the index of its item
        raises       InvalidInput for an argument; whatever `items` itself raises

        If you stop early, close the generator; leaving a `for` loop does that if nothing else holds it.
        This waits for the calls in flight.
        """
        from diptych_client._many import classify_many

        classify = self._classify_each(self.classify, timeout_s, min_score, explain)
        return classify_many(classify, items, concurrency=concurrency, ordered=ordered)

    def labels(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """The label names, in the order of the probabilities, as the server has them now."""
        return self._run(self._conversation.labels(self._start(timeout_s))).names

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """The server's name and version, and the model versions that it serves."""
        return self._run(self._conversation.server_info(self._start(timeout_s)))

    def health(self, *, deep: bool = False, timeout_s: float | None = None) -> Health:
        """Check once whether the next server can answer. The error is in the Health, not raised.

        deep  run an inference: Triton calls a model ready whose Python process has died
        """
        return self._run(self._conversation.health(self._start(timeout_s), deep))

    def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return once an inference is answered.

        raises  DeadlineExceeded with the last error; at once an error that waiting cannot change
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
        return open_transport(address, self._tls)

    def _abandon(self, transport: Transport) -> bool:
        transport.abandon()
        return True

    def _start_anew(self) -> None:
        super()._start_anew()
        self._alone = threading.Lock()

    def _encode(self, image: ImageInput, text: str | None, deadline: Deadline) -> tuple[bytes, bytes]:
        if is_at_hand(image, self._rules):
            return encode_item(image, text, self._rules)
        encoding = self._in_thread(lambda: encode_item(image, text, self._rules))
        return _result(encoding, deadline)

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
                attempt = self._attempt(step, step.request.request_id)
                return self._transport_to(step.address).infer(step.request, attempt)
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Together):
            return self._run_together(step)
        if isinstance(step, Alone):
            return self._run_alone(step)
        if isinstance(step, Describe):
            return self._transport_to(step.address).describe(self._attempt(step, None))
        if isinstance(step, Resolve):
            for transport in self._take_abandoned():
                transport.close()
            lookup = self._resolver.look_up(step.endpoint)
            return _result(lookup, step.deadline) if step.must_wait else None
        raise AssertionError(step)

    def _attempt(self, step: Infer | Describe, request_id: str | None) -> Attempt:
        renewed = self._headers.renewed() if self._headers.has_function else None
        headers = self._headers.pairs(renewed, step.headers)
        return Attempt(step.deadline, step.connect_timeout_s, headers, request_id)

    def _run_together(self, step: Together) -> list[Any]:
        with concurrent.futures.ThreadPoolExecutor(len(step.parts)) as threads:
            return list(threads.map(_tracing.carried(self._run), step.parts))

    def _run_alone(self, step: Alone) -> Any:
        if not self._alone.acquire(timeout=step.deadline.remaining_s(step.request_id)):
            raise step.deadline.exceeded(step.request_id)
        try:
            return self._run(step.part)
        finally:
            self._alone.release()


class AsyncClient(BaseClient[AsyncTransport]):
    """The methods of `Client`, to be awaited. Share it between tasks, close it at the end. In another event
    loop, such as of a second `asyncio.run`, it opens new connections.

    async with AsyncClient("grpc://127.0.0.1:8001") as client:
        answer = await client.classify(image="phone.jpg", text="A modern smartphone")
        print(answer.label, answer.score)
    """

    _is_async = True

    async def classify(
        self,
        image: ImageInput = None,
        text: str | None = None,
        *,
        timeout_s: float | None = None,
        min_score: float | None = None,
        explain: bool = False,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """As `Client.classify`. Files are read and images converted in a thread."""
        deadline = self._start(timeout_s)
        score = self._score_of(min_score)
        own, name = checked_headers(headers), _checked_request_id(request_id)
        question = Question(*await self._encode(image, text, deadline), deadline, score, own, name)
        ask = self._conversation.explain if explain else self._conversation.classify
        with _tracing.call("classify"):
            return await self._run(ask(question))

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

        If you may stop early, wrap it in `contextlib.aclosing`, like any asynchronous generator: the calls in
        flight are then cancelled at once.
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
        return open_async_transport(address, self._tls)

    def _abandon(self, transport: AsyncTransport) -> bool:
        _PARENTS.append(transport)
        return True

    def _start_anew(self) -> None:
        super()._start_anew()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end_of_loop: AsyncGenerator[None, None] | None = None

    async def _enter_loop(self) -> None:
        """Use connections and locks of the running event loop, if it is not the one of the last call."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        with self._lock:
            self._loop = loop
            self._alone = asyncio.Lock()
            left = [address for address in self._transports if address.scheme != LOCAL]
            for address in left:  # of a loop that was closed without closing its asynchronous generators
                _PARENTS.append(self._transports.pop(address))
        self._end_of_loop = self._close_with_loop(loop)
        await anext(self._end_of_loop)

    async def _close_with_loop(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        """An event loop closes its asynchronous generators before it ends, and so our connections."""
        try:
            yield
        finally:
            if self._loop is loop and asyncio.get_running_loop() is loop:
                self._loop = None
                for address in [address for address in self._transports if address.scheme != LOCAL]:
                    await self._transports.pop(address).close()

    async def _encode(self, image: ImageInput, text: str | None, deadline: Deadline) -> tuple[bytes, bytes]:
        if is_at_hand(image, self._rules):
            return encode_item(image, text, self._rules)
        return await _async_result(self._in_thread(lambda: encode_item(image, text, self._rules)), deadline)

    async def _run(self, steps: Steps[T]) -> T:
        """Carry out the steps, until they have their result."""
        await self._enter_loop()
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
                attempt = await self._attempt(step, step.request.request_id)
                return await self._transport_to(step.address).infer(step.request, attempt)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Together):
            return await self._run_together(step)
        if isinstance(step, Alone):
            return await self._run_alone(step)
        if isinstance(step, Describe):
            return await self._transport_to(step.address).describe(await self._attempt(step, None))
        if isinstance(step, Resolve):
            for transport in self._take_abandoned():
                await transport.close()
            lookup = self._resolver.look_up(step.endpoint)
            return await _async_result(lookup, step.deadline) if step.must_wait else None
        raise AssertionError(step)

    async def _attempt(self, step: Infer | Describe, request_id: str | None) -> Attempt:
        renewed = None
        if self._headers.is_async:
            renewing = asyncio.ensure_future(self._headers.renewed())
            await _until_done(renewing, step.deadline)
            renewed = renewing.result()
        elif self._headers.has_function:  # it may block, and never on the event loop
            renewed = await _async_result(self._in_thread(self._headers.renewed), step.deadline)
        headers = self._headers.pairs(renewed, step.headers)
        return Attempt(step.deadline, step.connect_timeout_s, headers, request_id)

    async def _run_together(self, step: Together) -> list[Any]:
        runs = [self._run(part) for part in step.parts]
        outcomes = await asyncio.gather(*runs, return_exceptions=True)  # none continues after its caller
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return outcomes

    async def _run_alone(self, step: Alone) -> Any:
        try:
            timeout_s = step.deadline.remaining_s(step.request_id)
            await asyncio.wait_for(self._alone.acquire(), timeout_s)
        except asyncio.TimeoutError:
            raise step.deadline.exceeded(step.request_id) from None
        try:
            return await self._run(step.part)
        finally:
            self._alone.release()


# Connections of a parent process, or of an event loop that is gone. They cannot be closed from here.
_PARENTS: list[AsyncTransport] = []


def _reconstruct(kind: type[Any], arguments: dict[str, Any]) -> Any:
    return kind(**arguments)


def _result(future: concurrent.futures.Future[T], deadline: Deadline) -> T:
    """Raises DeadlineExceeded, or what the work raised."""
    concurrent.futures.wait([future], timeout=deadline.remaining_s())
    if not future.done():
        future.cancel()
        raise deadline.exceeded()
    return future.result()


async def _async_result(future: concurrent.futures.Future[T], deadline: Deadline) -> T:
    """The same on an event loop."""
    wrapped = asyncio.wrap_future(future)
    await _until_done(wrapped, deadline)
    return wrapped.result()


async def _until_done(future: asyncio.Future[Any], deadline: Deadline) -> None:
    try:
        await asyncio.wait([future], timeout=deadline.remaining_s())
    except BaseException:
        future.cancel()
        raise
    if not future.done():
        future.cancel()
        raise deadline.exceeded()


def _checked_score(min_score: float) -> float:
    if not is_number(min_score) or not 0 <= min_score <= 1:
        raise InvalidInput.refusing("min_score", repr(min_score), "a probability, 0 to 1")
    return min_score


def _checked_request_id(request_id: str | None) -> str | None:
    if request_id is None or (isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id)):
        return request_id
    accepted = "1 to 128 ASCII letters, digits and . _ : / + = -"
    raise InvalidInput.refusing("request_id", repr(request_id)[:200], accepted)
