"""Carries requests over HTTP/1.1 on plain or TLS sockets; `http_protocol.py` says what to write and read."""

from __future__ import annotations

import collections
import socket
import threading
from collections.abc import Callable
from typing import Optional

from diptych_client import http_codec
from diptych_client.contract import Reply, Request, ServerInfo
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address
from diptych_client.http_codec import HttpRequest, HttpResponse
from diptych_client.http_protocol import FAILURES, HUNG_UP, RECEIVE_BYTES, HttpProtocol, explain
from diptych_client.tls import Tls
from diptych_client.transport import CONNECT_TIMEOUT_S, Wire

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
        message = http_codec.encode_request(request, deadline.remaining_s(request.request_id))
        response = self._exchange(message, deadline, request.request_id)
        return http_codec.decode_response(response, request.request_id)

    def describe(self, deadline: Deadline) -> ServerInfo:
        server = self._exchange(http_codec.SERVER_METADATA, deadline)
        model = None
        if http_codec.is_ready(self._exchange(http_codec.MODEL_READY, deadline)):
            model = self._exchange(http_codec.MODEL_METADATA, deadline)
        return http_codec.decode_info(server, model)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            while self._idle:
                self._idle.pop().close()

    def _exchange(
        self, request: HttpRequest, deadline: Deadline, request_id: Optional[str] = None
    ) -> HttpResponse:
        headers = self._headers.pairs()
        try:
            return self._send(request, headers, lambda: deadline.remaining_s(request_id))
        except socket.timeout:  # noqa: UP041  (not yet TimeoutError in Python 3.9)
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

    def _take_idle(self) -> Optional[_Connection]:
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
        except socket.timeout:  # noqa: UP041
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
