"""The twin of `http_transport.py` for asyncio."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import Optional

from diptych_client import http_codec
from diptych_client.contract import Reply, Request, ServerInfo
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address
from diptych_client.http_codec import HttpRequest, HttpResponse
from diptych_client.http_protocol import FAILURES, HUNG_UP, RECEIVE_BYTES, HttpProtocol, explain
from diptych_client.tls import Tls
from diptych_client.transport import CONNECT_TIMEOUT_S, Wire


class AsyncHttpTransport:
    """A pool of connections on the running event loop, as many as there are calls at once."""

    def __init__(self, address: Address, wire: Wire) -> None:
        self._address = address
        self._headers = wire.headers
        tls = wire.tls or Tls()
        self._server_name = tls.server_name or address.endpoint.host
        self._tls = tls.ssl_context() if address.endpoint.is_secure else None
        self._idle: collections.deque[_Connection] = collections.deque()  # the one used last is at the end
        self._is_closed = False

    async def infer(self, request: Request, deadline: Deadline) -> Reply:
        message = http_codec.encode_request(request, deadline.remaining_s(request.request_id))
        response = await self._exchange(message, deadline, request.request_id)
        return http_codec.decode_response(response, request.request_id)

    async def describe(self, deadline: Deadline) -> ServerInfo:
        server = await self._exchange(http_codec.SERVER_METADATA, deadline)
        model = None
        if http_codec.is_ready(await self._exchange(http_codec.MODEL_READY, deadline)):
            model = await self._exchange(http_codec.MODEL_METADATA, deadline)
        return http_codec.decode_info(server, model)

    async def close(self) -> None:
        self._is_closed = True
        while self._idle:
            await self._idle.pop().close()

    async def _exchange(
        self, request: HttpRequest, deadline: Deadline, request_id: Optional[str] = None
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
        self, connection: _Connection, request: HttpRequest, headers: tuple[tuple[str, str], ...]
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

    async def _take_idle(self) -> Optional[_Connection]:
        while self._idle and self._idle[0].protocol.has_idled_too_long:
            await self._idle.popleft().close()
        return self._idle.pop() if self._idle else None

    async def _connect(self) -> _Connection:
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
        return _Connection(reader, writer, endpoint.authority)


class _Connection:
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
