"""Carries requests over HTTP/1.1 on plain or TLS sockets, blocking and for asyncio.

`_http_wire.py` says what to write and read. This module owns the sockets and the pools.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import threading
from collections.abc import Callable

from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._retries import Deadline
from diptych_client._servers import Address
from diptych_client._tls import Tls
from diptych_client._transports import _http_wire as wires
from diptych_client._transports._base import CONNECT_TIMEOUT_S, Wire
from diptych_client._transports._http_wire import (
    FAILURES,
    HUNG_UP,
    RECEIVE_BYTES,
    HttpProtocol,
    HttpRequest,
    HttpResponse,
    explain,
)

# Asked anew before each wait; raises DeadlineExceeded.
Remaining = Callable[[], float]


class HttpTransport:
    """A pool of connections, as many as there are calls at once. Safe to share between threads."""

    def __init__(self, address: Address, wire: Wire) -> None:
        self._address = address
        self._headers = wire.headers
        tls = wire.tls or Tls()
        self._server_name = tls.server_name or address.endpoint.host
        self._tls = tls.ssl_context() if address.endpoint.is_secure else None
        self._idle: collections.deque[_Connection] = collections.deque()  # the one used last is at the end
        self._lock = threading.Lock()  # held for moments, never while waiting for the server
        self._is_closed = False

    def infer(self, request: Request, deadline: Deadline) -> Reply:
        message = wires.encode_request(request, deadline.remaining_s(request.request_id))
        response = self._exchange(message, deadline, request.request_id)
        return wires.decode_response(response, request.request_id)

    def describe(self, deadline: Deadline) -> ServerInfo:
        server = self._exchange(wires.SERVER_METADATA, deadline)
        model = None
        if wires.is_ready(self._exchange(wires.MODEL_READY, deadline)):
            model = self._exchange(wires.MODEL_METADATA, deadline)
        return wires.decode_info(server, model)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            while self._idle:
                self._idle.pop().close()

    def _exchange(
        self, request: HttpRequest, deadline: Deadline, request_id: str | None = None
    ) -> HttpResponse:
        headers = self._headers.pairs()
        try:
            return self._send(request, headers, lambda: deadline.remaining_s(request_id))
        except TimeoutError:
            raise deadline.exceeded(request_id) from None
        except FAILURES as error:
            raise explain(error, self._address, request_id) from None

    def _send(
        self, request: HttpRequest, headers: tuple[tuple[str, str], ...], remaining: Remaining
    ) -> HttpResponse:
        """Use an idle connection; where the server has hung up on it meanwhile, the next one or a new one.

        Sending again is safe: it happens only before the first byte of an answer, and an inference changes
        nothing on the server.
        """
        while (connection := self._take_idle()) is not None:
            try:
                return self._send_over(connection, request, headers, remaining)
            except HUNG_UP:
                if connection.protocol.has_heard:
                    raise
        connection = self._connect(remaining)
        return self._send_over(connection, request, headers, remaining)

    def _send_over(
        self,
        connection: _Connection,
        request: HttpRequest,
        headers: tuple[tuple[str, str], ...],
        remaining: Remaining,
    ) -> HttpResponse:
        try:
            response = connection.exchange(request, headers, remaining)
        except BaseException:  # also KeyboardInterrupt: half an answer must not greet the next call
            connection.close()
            raise
        self._put_back(connection)
        return response

    def _take_idle(self) -> _Connection | None:
        """The connection used last, if any. Those that have idled for too long are closed on the way."""
        with self._lock:
            while self._idle and self._idle[0].protocol.has_idled_too_long:
                self._idle.popleft().close()
            return self._idle.pop() if self._idle else None

    def _put_back(self, connection: _Connection) -> None:
        with self._lock:
            if connection.protocol.start_next_cycle() and not self._is_closed:
                self._idle.append(connection)
            else:
                connection.close()

    def _connect(self, remaining: Remaining) -> _Connection:
        endpoint = self._address.endpoint
        try:
            timeout_s = min(CONNECT_TIMEOUT_S, remaining())
            plain = socket.create_connection((self._address.ip, endpoint.port), timeout_s)
        except TimeoutError:
            remaining()  # the deadline's own error, where it has passed
            raise ConnectionError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body are two sends
            if self._tls is None:
                return _Connection(plain, endpoint.authority)
            plain.settimeout(min(CONNECT_TIMEOUT_S, remaining()))
            secured = self._tls.wrap_socket(plain, server_hostname=self._server_name)
            return _Connection(secured, endpoint.authority)
        except BaseException:
            plain.close()
            raise


class _Connection:
    """One socket and the state of the protocol on it. For one thread at a time."""

    def __init__(self, connected: socket.socket, authority: str) -> None:
        self._socket = connected
        self.protocol = HttpProtocol(authority)

    def close(self) -> None:
        self._socket.close()

    def exchange(
        self, request: HttpRequest, headers: tuple[tuple[str, str], ...], remaining: Remaining
    ) -> HttpResponse:
        """Send, then read to the answer's end. Raises one of FAILURES, or DeadlineExceeded."""
        for data in self.protocol.send(request, headers):
            self._socket.settimeout(remaining())
            self._socket.sendall(data)
        while True:
            self._socket.settimeout(remaining())
            response = self.protocol.receive(self._socket.recv(RECEIVE_BYTES))
            if response is not None:
                return response


class AsyncHttpTransport:
    """A pool of connections on the running event loop, as many as there are calls at once."""

    def __init__(self, address: Address, wire: Wire) -> None:
        self._address = address
        self._headers = wire.headers
        tls = wire.tls or Tls()
        self._server_name = tls.server_name or address.endpoint.host
        self._tls = tls.ssl_context() if address.endpoint.is_secure else None
        self._idle: collections.deque[_AsyncConnection] = (
            collections.deque()
        )  # the one used last is at the end
        self._is_closed = False

    async def infer(self, request: Request, deadline: Deadline) -> Reply:
        message = wires.encode_request(request, deadline.remaining_s(request.request_id))
        response = await self._exchange(message, deadline, request.request_id)
        return wires.decode_response(response, request.request_id)

    async def describe(self, deadline: Deadline) -> ServerInfo:
        server = await self._exchange(wires.SERVER_METADATA, deadline)
        model = None
        if wires.is_ready(await self._exchange(wires.MODEL_READY, deadline)):
            model = await self._exchange(wires.MODEL_METADATA, deadline)
        return wires.decode_info(server, model)

    async def close(self) -> None:
        self._is_closed = True
        while self._idle:
            await self._idle.pop().close()

    async def _exchange(
        self, request: HttpRequest, deadline: Deadline, request_id: str | None = None
    ) -> HttpResponse:
        sending = self._send(request, self._headers.pairs())
        try:
            return await asyncio.wait_for(sending, deadline.remaining_s(request_id))
        except asyncio.TimeoutError:
            raise deadline.exceeded(request_id) from None
        except FAILURES as error:
            raise explain(error, self._address, request_id) from None

    async def _send(self, request: HttpRequest, headers: tuple[tuple[str, str], ...]) -> HttpResponse:
        """As `HttpTransport` does: idle connections first, past those that the server has closed."""
        while (connection := await self._take_idle()) is not None:
            try:
                return await self._send_over(connection, request, headers)
            except HUNG_UP:
                if connection.protocol.has_heard:
                    raise
        return await self._send_over(await self._connect(), request, headers)

    async def _send_over(
        self, connection: _AsyncConnection, request: HttpRequest, headers: tuple[tuple[str, str], ...]
    ) -> HttpResponse:
        try:
            response = await connection.exchange(request, headers)
        except BaseException:  # also a cancelled task: half an answer must not greet the next call
            connection.abort()
            raise
        if connection.protocol.start_next_cycle() and not self._is_closed:
            self._idle.append(connection)
        else:
            await connection.close()
        return response

    async def _take_idle(self) -> _AsyncConnection | None:
        while self._idle and self._idle[0].protocol.has_idled_too_long:
            await self._idle.popleft().close()
        return self._idle.pop() if self._idle else None

    async def _connect(self) -> _AsyncConnection:
        endpoint = self._address.endpoint
        opening = asyncio.open_connection(
            self._address.ip,
            endpoint.port,
            ssl=self._tls,
            server_hostname=self._server_name if self._tls else None,
        )
        try:
            reader, writer = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise ConnectionError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
        return _AsyncConnection(reader, writer, endpoint.authority)


class _AsyncConnection:
    """One stream and the state of the protocol on it. For one task at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str) -> None:
        self._reader = reader
        self._writer = writer
        self.protocol = HttpProtocol(authority)

    def abort(self) -> None:
        self._writer.transport.abort()

    async def close(self) -> None:
        """At once: an answer says itself where it ends, so that TLS's farewell would say nothing new."""
        self.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def exchange(self, request: HttpRequest, headers: tuple[tuple[str, str], ...]) -> HttpResponse:
        """Send, then read to the answer's end. Raises one of FAILURES."""
        for data in self.protocol.send(request, headers):
            self._writer.write(data)
        await self._writer.drain()
        while True:
            response = self.protocol.receive(await self._reader.read(RECEIVE_BYTES))
            if response is not None:
                return response
