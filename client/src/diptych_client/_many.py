"""Many items through one client: in order, several at once, never more than a few in memory.

Knows nothing of wires: it calls the client's own `classify`, in threads or in tasks.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping
from typing import Any

from diptych_client import _tracing
from diptych_client._answer import Answer, Outcome
from diptych_client._errors import DiptychError, InvalidInput

ACCEPTED_ITEM = "a mapping with the keys 'image' and 'text', or an object with these attributes"

# Answers wait here for their turn, so that one slow item does not idle the calls behind it.
ITEMS_HELD_PER_CALL = 2


def classify_many(
    classify: Callable[..., Answer], items: Iterable[object], *, concurrency: int = 32
) -> Generator[Outcome, None, None]:
    """Classify items from any iterable, also one without end; yield an answer or an error for each, in order.

    classify     the client's own method
    items        each a mapping with the keys 'image' and 'text', or an object with these attributes, such as
                 a dataclass; either may be missing or None. What `Client.classify` takes, they may hold.
                 Other keys and attributes are left alone. Taken as needed, in the caller's thread: at most
                 2 * concurrency items are held at a time.
    concurrency  calls at once
    yields       the Answer, or the DiptychError in its place
    raises       InvalidInput for a concurrency below 1; whatever `items` itself raises

    A consumer that stops early closes the generator; leaving a `for` loop does, where nothing else holds the
    generator. That waits for the calls in flight, and leaves no thread behind.
    """
    _require_positive(concurrency)
    return _classify_in_threads(classify, items, concurrency)


def classify_many_async(
    classify: Callable[..., Awaitable[Answer]],
    items: Iterable[object] | AsyncIterable[object],
    *,
    concurrency: int = 32,
) -> AsyncIterator[Outcome]:
    """`classify_many` for asyncio; items may come from an asynchronous iterable too.

    A consumer that may stop early wraps it in `contextlib.aclosing`, as any asynchronous generator: the calls
    in flight are then cancelled at once.
    """
    _require_positive(concurrency)
    return _classify_in_tasks(classify, items, concurrency)


def _classify_in_threads(
    classify: Callable[..., Answer], items: Iterable[object], concurrency: int
) -> Generator[Outcome, None, None]:
    def ask(item: object) -> Outcome:
        try:
            return classify(**_parts_of(item))
        except DiptychError as error:
            return _without_frames(error)

    pending: collections.deque[concurrent.futures.Future[Outcome]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(concurrency, thread_name_prefix="diptych-client")
    try:
        for item in items:
            pending.append(pool.submit(_tracing.carried(ask), item))
            del item  # its picture need not outlive its answer
            while pending and (pending[0].done() or len(pending) >= ITEMS_HELD_PER_CALL * concurrency):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


async def _classify_in_tasks(
    classify: Callable[..., Awaitable[Answer]],
    items: Iterable[object] | AsyncIterable[object],
    concurrency: int,
) -> AsyncIterator[Outcome]:
    free = asyncio.Semaphore(concurrency)

    async def ask(item: object) -> Outcome:
        async with free:
            try:
                return await classify(**_parts_of(item))
            except DiptychError as error:
                return _without_frames(error)

    pending: collections.deque[asyncio.Task[Outcome]] = collections.deque()
    try:
        async for item in _to_async(items):
            pending.append(asyncio.create_task(ask(item)))
            del item
            while pending and (pending[0].done() or len(pending) >= ITEMS_HELD_PER_CALL * concurrency):
                yield await _first(pending)
        while pending:
            yield await _first(pending)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _first(pending: collections.deque[asyncio.Task[Outcome]]) -> Outcome:
    """The first task's outcome. It stays in line until it is done, so that a cancelled wait ends it too."""
    outcome = await pending[0]
    pending.popleft()
    return outcome


async def _to_async(items: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[object]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
            await asyncio.sleep(0)  # else an endless source that is always ready starves the calls


def _parts_of(item: object) -> dict[str, Any]:
    """The arguments of `classify`. Raises InvalidInput where the item has neither part."""
    if isinstance(item, Mapping):
        parts = {name: item[name] for name in ("image", "text") if name in item}
        found = f"a mapping with the keys {sorted(map(str, item))}"
    else:
        parts = {name: getattr(item, name) for name in ("image", "text") if hasattr(item, name)}
        found = f"{type(item).__module__}.{type(item).__qualname__}".replace("builtins.", "")
    if not parts:
        raise InvalidInput.refusing("item", found, ACCEPTED_ITEM)
    return parts


def _without_frames(error: DiptychError) -> DiptychError:
    """An error is kept by whoever collects outcomes; the frames in its traceback would keep the picture."""
    chained: BaseException | None = error
    while chained is not None:
        chained.__traceback__ = None
        chained = chained.__cause__ or chained.__context__
    return error


def _require_positive(concurrency: int) -> None:
    if concurrency < 1:
        raise InvalidInput.refusing("concurrency", repr(concurrency), "a number of calls, 1 or more")
