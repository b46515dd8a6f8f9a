"""Carries requests over HTTP/1.1 on plain or TLS sockets, blocking.

`_http_wire.py` says what to write and read, `_pool.py` which connection is used. The sockets are here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import diptych_client._transports._http_wire as wires
from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._errors import DiptychError
from diptych_client._servers import Address
from diptych_client._tls import Tls
from diptych_client._transports._base import Attempt
from diptych_client._transports._http_wire import HttpRequest, HttpResponse
from diptych_client._transports._pool import Pool

T = TypeVar("T")

# A large request is sent in parts, with a look at the socket before each: the server may refuse it early.
SEND_BYTES = 128 * 1024


class HttpTransport:
    """Safe to share between threads."""

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self._address = address
        tls = tls or Tls()
        self._server_name = tls.server_name or address.endpoint.host
        self._tls = tls.ssl_context() if address.endpoint.is_secure else None
        self._pool: Pool[_Connection] = Pool(concurrent.futures.Future)
        self._closer_lock = threading.Lock()
        self._has_closer = False

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        def read(response: HttpResponse) -> Reply:
            return wires.decode_response(response, request.request_id)

        return self._exchange(wires.encode_request(request, attempt.remaining_s()), attempt, read)

    def describe(self, attempt: Attempt) -> ServerInfo:
        server = self._exchange(wires.SERVER_METADATA, attempt, wires.json_of)
        model = None
        if self._exchange(wires.MODEL_READY, attempt, wires.is_ready):
            model = self._exchange(wires.MODEL_METADATA, attempt, wires.json_of)
        return wires.decode_info(server, model)

    def close(self) -> None:
        for connection in self._pool.close():
            connection.close()

    def abandon(self) -> None:
        self.close()  # of the child's descriptors alone, and without TLS's farewell

    def _exchange(self, request: HttpRequest, attempt: Attempt, read: Callable[[HttpResponse], T]) -> T:
        self._wait_for_a_place(attempt)
        try:
            return self._send(request, attempt, read)
        except DiptychError:
            raise
        except TimeoutError:
            raise attempt.deadline.exceeded(attempt.request_id) from None
        except wires.FAILURES as error:
            raise wires.explain(error, self._address, attempt.request_id) from None
        finally:
            self._pool.leave()

    def _wait_for_a_place(self, attempt: Attempt) -> None:
        attempt.remaining_s()
        waiter = self._pool.enter()
        if waiter is None:
            return
        try:
            waiter.result(attempt.remaining_s())
        except BaseException as error:
            self._pool.give_up(waiter)
            if isinstance(error, concurrent.futures.TimeoutError):
                raise attempt.deadline.exceeded(attempt.request_id) from None
            raise

    def _send(self, request: HttpRequest, attempt: Attempt, read: Callable[[HttpResponse], T]) -> T:
        """Use an idle connection; where the server has hung up on it meanwhile, the next one or a new one.

        Sending again is safe: it happens only before the first byte of an answer, and an inference changes
        nothing on the server.
        """
        while (connection := self._pool.take_idle()) is not None:
            if not connection.is_usable():
                connection.close()
                continue
            try:
                return self._send_over(connection, request, attempt, read)
            except wires.HUNG_UP:
                if connection.protocol.has_heard:
                    raise
        return self._send_over(self._connect(attempt), request, attempt, read)

    def _send_over(
        self,
        connection: _Connection,
        request: HttpRequest,
        attempt: Attempt,
        read: Callable[[HttpResponse], T],
    ) -> T:
        try:
            response = connection.exchange(request, attempt)
            result = read(response)
        except (DiptychError, *wires.FAILURES) as error:
            # Another request's answer, or half of ours: what comes next over this connection is not known.
            if wires.may_be_kept(error):
                self._put_back(connection)
            else:
                connection.close()
            raise
        except BaseException:  # KeyboardInterrupt, a greenlet's end
            connection.close()
            raise
        self._put_back(connection)
        return result

    def _put_back(self, connection: _Connection) -> None:
        if not connection.protocol.start_next_cycle() or not self._pool.put_idle(connection):
            connection.close()
            return
        with self._closer_lock:
            if self._has_closer:
                return
            self._has_closer = True
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and all sockets with it
            threading.Thread(target=self._close_idle, name="diptych-idle", daemon=True).start()

    def _close_idle(self) -> None:
        """Close what idles for too long, until nothing idles."""
        while True:
            expired, next_s = self._pool.take_expired(time.monotonic())
            for connection in expired:
                connection.close()
            if next_s is None:
                with self._closer_lock:
                    # Put back since? Then once more: `_put_back` has seen that there is a closer.
                    if self._pool.take_expired(0.0)[1] is None:
                        self._has_closer = False
                        return
                continue
            time.sleep(max(0.01, next_s - time.monotonic()))

    def _connect(self, attempt: Attempt) -> _Connection:
        endpoint = self._address.endpoint
        limit_s = attempt.connect_timeout_s
        ends_s = time.monotonic() + limit_s
        try:
            timeout_s = min(limit_s, attempt.remaining_s())
            plain = socket.create_connection((self._address.ip, endpoint.port), timeout_s)
        except DiptychError:
            raise
        except TimeoutError:
            attempt.remaining_s()  # the deadline's own error, where it has passed
            raise ConnectionError(f"no connection within {limit_s:.2g} s") from None
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body are two sends
            if self._tls is None:
                return _Connection(plain, endpoint.authority, endpoint.path)
            plain.settimeout(max(0.01, min(ends_s - time.monotonic(), attempt.remaining_s())))
            try:
                secured = self._tls.wrap_socket(plain, server_hostname=self._server_name)
            except TimeoutError:
                attempt.remaining_s()
                raise ConnectionError(f"no TLS within {limit_s:.2g} s") from None
            return _Connection(secured, endpoint.authority, endpoint.path)
        except BaseException:
            plain.close()
            raise


class _Connection:
    """One socket and the state of the protocol on it. For one thread at a time."""

    def __init__(self, connected: socket.socket, authority: str, prefix: str) -> None:
        self._socket = connected
        self.protocol = wires.HttpProtocol(authority, prefix)

    @property
    def idle_until_s(self) -> float:
        return self.protocol.idle_until_s

    def is_usable(self) -> bool:
        """Whether an idle connection is open, and silent as it should be: bytes that wait before a request is
        sent would be taken for its answer."""
        return not wait_for(self._socket, 0)

    def close(self) -> None:
        self._socket.close()

    def exchange(self, request: HttpRequest, attempt: Attempt) -> HttpResponse:
        """Send, then read to the answer's end. Raises one of FAILURES, or DeadlineExceeded."""
        try:
            for data in self.protocol.send(request, attempt.headers):
                early = self._send(data, attempt)
                if early is not None:
                    return early
        except wires.HUNG_UP as error:
            # A server that refuses a request by its head says so before it hangs up.
            try:
                return self._read(attempt)
            except wires.HUNG_UP:
                raise error from None
        return self._read(attempt)

    def _read(self, attempt: Attempt) -> HttpResponse:
        while True:
            self._socket.settimeout(attempt.remaining_s())
            response = self.protocol.receive(self._socket.recv(wires.RECEIVE_BYTES))
            if response is not None:
                return response

    def _send(self, data: bytes, attempt: Attempt) -> HttpResponse | None:
        """Write all; or return the answer that comes before the end, and then write no more."""
        self._socket.settimeout(attempt.remaining_s())
        if len(data) <= SEND_BYTES:
            self._socket.sendall(data)
            return None
        self._socket.settimeout(0)
        rest = memoryview(data)
        while rest:
            if wait_for(self._socket, attempt.remaining_s(), to_write=True):
                with contextlib.suppress(*_NOT_NOW):
                    response = self.protocol.receive(self._socket.recv(wires.RECEIVE_BYTES))
                    if response is not None:
                        return response
            with contextlib.suppress(*_NOT_NOW):
                rest = rest[self._socket.send(rest[:SEND_BYTES]) :]
        return None


def wait_for(connected: socket.socket, timeout_s: float, *, to_write: bool = False) -> bool:
    """Wait for something to read, or also for room to write. Returns whether there is something to read, be
    it the end of the stream; False too where time runs out."""
    if not hasattr(select, "poll"):  # Windows
        written = [connected] if to_write else []
        return bool(select.select([connected], written, [], timeout_s)[0])
    poll = select.poll()  # unlike select, for descriptors above 1,023 too
    poll.register(connected, select.POLLIN | (select.POLLOUT if to_write else 0))
    return any(event & ~select.POLLOUT for _, event in poll.poll(1000 * timeout_s))


# What a socket says that does not wait. TLS may have to read before it can write, and the other way round.
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
