"""Runs a blocking transport in worker threads, for an event loop that must not wait for it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._transports._base import Attempt, Transport

T = TypeVar("T")


async def within(attempt: Attempt, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. If it takes too long, cancels it and raises DeadlineExceeded.

    Not `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes with the result.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=attempt.remaining_s())
        if not task.done():
            raise attempt.deadline.exceeded(attempt.request_id)
    except BaseException:
        task.cancel()
        task.add_done_callback(_look_at)
        raise
    return task.result()


def _look_at(task: asyncio.Future[Any]) -> None:
    """Retrieve the error, because asyncio reports errors that nobody retrieves."""
    if not task.cancelled():
        task.exception()


class ThreadedTransport:
    """It has its own threads, because the event loop's may be busy."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._threads = ThreadPoolExecutor(thread_name_prefix="diptych-client-local")

    async def infer(self, request: Request, attempt: Attempt) -> Reply:
        return await within(attempt, self._run(lambda: self._transport.infer(request, attempt)))

    async def describe(self, attempt: Attempt) -> ServerInfo:
        return await within(attempt, self._run(lambda: self._transport.describe(attempt)))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._transport.close()

    async def _run(self, work: Callable[[], T]) -> T:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)
