"""Carries requests over HTTP/1.1 for asyncio. The same rules as in `_http.py`, on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import diptych_client._transports._http_wire as wires
from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._errors import DiptychError
from diptych_client._servers import Address
from diptych_client._tls import Tls
from diptych_client._transports._base import Attempt
from diptych_client._transports._http import wait_for
from diptych_client._transports._http_wire import HttpRequest, HttpResponse
from diptych_client._transports._pool import Pool
from diptych_client._transports._threaded import within

T = TypeVar("T")


class AsyncHttpTransport:
    """Connections on the running event loop."""

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self._address = address
        tls = tls or Tls()
        self._server_name = tls.server_name or address.endpoint.host
        self._tls = tls.ssl_context() if address.endpoint.is_secure else None
        self._loop = asyncio.get_running_loop()
        self._pool: Pool[_Connection] = Pool(self._loop.create_future)
        self._closer: asyncio.TimerHandle | None = None

    async def infer(self, request: Request, attempt: Attempt) -> Reply:
        def read(response: HttpResponse) -> Reply:
            return wires.decode_response(response, request.request_id)

        return await self._exchange(wires.encode_request(request, attempt.remaining_s()), attempt, read)

    async def describe(self, attempt: Attempt) -> ServerInfo:
        server = await self._exchange(wires.SERVER_METADATA, attempt, wires.json_of)
        model = None
        if await self._exchange(wires.MODEL_READY, attempt, wires.is_ready):
            model = await self._exchange(wires.MODEL_METADATA, attempt, wires.json_of)
        return wires.decode_info(server, model)

    async def close(self) -> None:
        if self._closer is not None:
            self._closer.cancel()
        for connection in self._pool.close():
            await connection.close()

    async def _exchange(self, request: HttpRequest, attempt: Attempt, read: Callable[[HttpResponse], T]) -> T:
        try:
            return await within(attempt, self._send_in_turn(request, attempt, read))
        except DiptychError:
            raise
        except wires.FAILURES as error:
            raise wires.explain(error, self._address, attempt.request_id) from None

    async def _send_in_turn(
        self, request: HttpRequest, attempt: Attempt, read: Callable[[HttpResponse], T]
    ) -> T:
        waiter = self._pool.enter()
        if waiter is not None:
            try:
                await waiter
            except BaseException:
                self._pool.give_up(waiter)
                raise
        try:
            return await self._send(request, attempt, read)
        finally:
            self._pool.leave()

    async def _send(self, request: HttpRequest, attempt: Attempt, read: Callable[[HttpResponse], T]) -> T:
        """As `HttpTransport` does: idle connections first, past those that the server has closed."""
        while (connection := self._pool.take_idle()) is not None:
            if not connection.is_usable():
                await connection.close()
                continue
            try:
                return await self._send_over(connection, request, attempt, read)
            except wires.HUNG_UP:
                if connection.protocol.has_heard:
                    raise
        return await self._send_over(await self._connect(attempt), request, attempt, read)

    async def _send_over(
        self,
        connection: _Connection,
        request: HttpRequest,
        attempt: Attempt,
        read: Callable[[HttpResponse], T],
    ) -> T:
        try:
            response = await connection.exchange(request, attempt)
            result = read(response)
        except (DiptychError, *wires.FAILURES) as error:
            if wires.may_be_kept(error):
                await self._put_back(connection)
            else:
                connection.abort()
            raise
        except BaseException:  # a cancelled task
            connection.abort()
            raise
        await self._put_back(connection)
        return result

    async def _put_back(self, connection: _Connection) -> None:
        if not connection.protocol.start_next_cycle() or not self._pool.put_idle(connection):
            await connection.close()
        elif self._closer is None:
            self._closer = self._loop.call_later(wires.KEEP_IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        """Close what idles for too long, until nothing idles."""
        expired, next_s = self._pool.take_expired(time.monotonic())
        for connection in expired:
            connection.abort()
        self._closer = None
        if next_s is not None:
            delay_s = max(0.01, next_s - time.monotonic())
            self._closer = self._loop.call_later(delay_s, self._close_idle)

    async def _connect(self, attempt: Attempt) -> _Connection:
        endpoint = self._address.endpoint
        connection = _Connection(endpoint.authority, endpoint.path, self._loop)
        opening = self._loop.create_connection(
            lambda: connection,
            self._address.ip,
            endpoint.port,
            ssl=self._tls,
            server_hostname=self._server_name if self._tls else None,
        )
        try:
            await asyncio.wait_for(opening, attempt.connect_timeout_s)
        except asyncio.TimeoutError:
            limit_s = attempt.connect_timeout_s
            raise ConnectionError(f"no connection within {limit_s:.2g} s") from None
        return connection


class _Connection(asyncio.Protocol):
    """One connection and the state of the protocol on it. For one task at a time.

    Not asyncio's streams: they keep bytes that nobody asked for, and would give them to the next request.
    """

    def __init__(self, authority: str, prefix: str, loop: asyncio.AbstractEventLoop) -> None:
        self.protocol = wires.HttpProtocol(authority, prefix)
        self._loop = loop
        self._transport: Any = None
        self._answer: asyncio.Future[HttpResponse] | None = None
        self._closed: asyncio.Future[None] = loop.create_future()

    @property
    def idle_until_s(self) -> float:
        return self.protocol.idle_until_s

    def is_usable(self) -> bool:
        """As in `_http.py`. What the event loop has not read yet counts too."""
        return not self._transport.is_closing() and not wait_for(self._transport.get_extra_info("socket"), 0)

    def abort(self) -> None:
        """At once: an answer says itself where it ends, so that TLS's farewell would say nothing new."""
        self._transport.abort()

    async def close(self) -> None:
        self.abort()
        await asyncio.wait({self._closed})

    async def exchange(self, request: HttpRequest, attempt: Attempt) -> HttpResponse:
        """Send, then wait for the answer, which may come before all is sent. Raises one of FAILURES."""
        self._answer = self._loop.create_future()
        try:
            for data in self.protocol.send(request, attempt.headers):
                self._transport.write(data)
            return await self._answer
        finally:
            self._answer = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self._transport.abort()  # nobody has asked
        else:
            self._receive(data)

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        if not self._closed.done():
            self._closed.set_result(None)

    def _end(self, error: Exception | None) -> None:
        if self._answer is None or self._answer.done():
            return
        if error is None:
            self._receive(b"")
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))

    def _receive(self, data: bytes) -> None:
        assert self._answer is not None
        try:
            response = self.protocol.receive(data)
        except wires.FAILURES as error:
            self._answer.set_exception(error)
        else:
            if response is not None:
                self._answer.set_result(response)
