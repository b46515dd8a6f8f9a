"""Classifies many items with one client: several at once, few in memory.

It calls the client's `classify` in threads or tasks. Each item is its own request: Triton batches the
requests of all callers, and a request has one error and one deadline, so one bad item would fail all items
of its request.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
)
from typing import Any, TypeVar

from diptych_client import _tracing
from diptych_client._answer import Answer, Outcome
from diptych_client._errors import DiptychError, InvalidInput

ACCEPTED_ITEM = "a mapping with the keys 'image' and 'text', or an object with these attributes"

# Answers wait here for their turn, so that one slow item does not stop the others.
ITEMS_HELD_PER_CALL = 2

AnyFuture = TypeVar("AnyFuture", "concurrent.futures.Future[Outcome]", "asyncio.Task[Outcome]")


def classify_many(
    classify: Callable[..., Answer], items: Iterable[object], *, concurrency: int, ordered: bool
) -> Generator[Outcome, None, None]:
    """`Client.classify_many`; `classify` takes the parts of one item."""
    _require_positive(concurrency)
    return _classify_in_threads(classify, items, concurrency, ordered)


def classify_many_async(
    classify: Callable[..., Awaitable[Answer]],
    items: Iterable[object] | AsyncIterable[object],
    *,
    concurrency: int,
    ordered: bool,
) -> AsyncIterator[Outcome]:
    """`AsyncClient.classify_many`."""
    _require_positive(concurrency)
    return _classify_in_tasks(classify, items, concurrency, ordered)


def _classify_in_threads(
    classify: Callable[..., Answer], items: Iterable[object], concurrency: int, ordered: bool
) -> Generator[Outcome, None, None]:
    def ask(numbered: tuple[int, object]) -> Outcome:
        index, item = numbered
        try:
            return Outcome(index, answer=classify(**_parts_of(item)))
        except DiptychError as error:
            return Outcome(index, error=_without_frames(error))

    held: list[concurrent.futures.Future[Outcome]] = []
    pool = concurrent.futures.ThreadPoolExecutor(concurrency, thread_name_prefix="diptych-client")
    try:
        for numbered in enumerate(items):
            held.append(pool.submit(_tracing.carried(ask), numbered))
            del numbered  # its image need not outlive its answer
            yield from _finished(held, ITEMS_HELD_PER_CALL * concurrency, ordered)
        yield from _finished(held, 1, ordered)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(
    held: list[concurrent.futures.Future[Outcome]], most: int, ordered: bool
) -> Generator[Outcome, None, None]:
    """The outcomes that are ready to yield; waits until fewer than `most` are held."""
    while held:
        call = _take_ready(held, ordered)
        if call is not None:
            yield call.result()
        elif len(held) < most:
            return
        else:
            first = held[:1] if ordered else held
            concurrent.futures.wait(first, return_when=concurrent.futures.FIRST_COMPLETED)


async def _classify_in_tasks(
    classify: Callable[..., Awaitable[Answer]],
    items: Iterable[object] | AsyncIterable[object],
    concurrency: int,
    ordered: bool,
) -> AsyncIterator[Outcome]:
    """One task takes the items, because an asynchronous source must be resumed by the same task. This one
    waits
    for a finished call or the end of the items."""
    calls, room = asyncio.Semaphore(concurrency), asyncio.Semaphore(ITEMS_HELD_PER_CALL * concurrency)
    held: list[asyncio.Task[Outcome]] = []
    progress = asyncio.Event()

    async def ask(index: int, item: object) -> Outcome:
        async with calls:
            try:
                return Outcome(index, answer=await classify(**_parts_of(item)))
            except DiptychError as error:
                return Outcome(index, error=_without_frames(error))

    async def take_items() -> None:
        index = 0
        await room.acquire()
        async with contextlib.aclosing(_to_async(items)) as source:
            async for item in source:
                call = asyncio.create_task(ask(index, item))
                del item  # its image need not outlive its answer
                call.add_done_callback(lambda _: progress.set())
                held.append(call)
                index += 1
                await room.acquire()

    taking = asyncio.create_task(take_items())
    taking.add_done_callback(lambda _: progress.set())
    try:
        while True:
            progress.clear()
            while (call := _take_ready(held, ordered)) is not None:
                room.release()
                yield call.result()
            if taking.done():
                taking.result()  # raises the source's error
                if not held:
                    return
            await progress.wait()
    finally:
        for task in (taking, *held):
            task.cancel()
        await asyncio.gather(taking, *held, return_exceptions=True)


def _take_ready(held: list[AnyFuture], ordered: bool) -> AnyFuture | None:
    """Remove a finished call: the oldest of all, or any if the order does not matter."""
    for number, call in enumerate(held[:1] if ordered else held):
        if call.done():
            return held.pop(number)
    return None


async def _to_async(items: Iterable[object] | AsyncIterable[object]) -> AsyncGenerator[object, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
            await asyncio.sleep(0)  # else an endless source that is always ready blocks the calls


def _parts_of(item: object) -> dict[str, Any]:
    """The arguments of `classify`. Raises InvalidInput if the item has neither part."""
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
    """Remove the traceback: callers collect errors, and its frames would keep the image in memory."""
    chained: BaseException | None = error
    while chained is not None:
        chained.__traceback__ = None
        chained = chained.__cause__ or chained.__context__
    return error


def _require_positive(concurrency: int) -> None:
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidInput.refusing("concurrency", repr(concurrency), "a number of calls, 1 or more")
