"""Runs a blocking transport in worker threads, for an event loop that must not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._retries import Deadline
from diptych_client._transports._base import Transport

T = TypeVar("T")


class ThreadedTransport:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def infer(self, request: Request, deadline: Deadline) -> Reply:
        return await self._run(lambda: self._transport.infer(request, deadline), deadline, request.request_id)

    async def describe(self, deadline: Deadline) -> ServerInfo:
        return await self._run(lambda: self._transport.describe(deadline), deadline, None)

    async def close(self) -> None:
        self._transport.close()

    async def _run(self, work: Callable[[], T], deadline: Deadline, request_id: str | None) -> T:
        try:
            return await asyncio.wait_for(asyncio.to_thread(work), deadline.remaining_s(request_id))
        except asyncio.TimeoutError:
            raise deadline.exceeded(request_id) from None
