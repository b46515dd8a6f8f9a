"""Carries requests over HTTP/1.1: h11 for the protocol, plain sockets for the bytes.

Why not a larger library: tritonclient's HTTP half is not thread-safe and brings gevent, and the timeouts of
http.client, urllib3 and httpx start anew with every packet, so that a server that trickles its answer holds a
caller for ever. Here every single wait asks the call's one deadline. h11 does no I/O, so the async twin will
share all but the sockets.
"""

from __future__ import annotations

import collections
import socket
import threading
import time
from typing import Optional, Union

import h11

from diptych_client import http_codec
from diptych_client.contract import Reply, Request
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Endpoint
from diptych_client.errors import ConnectionFailed
from diptych_client.http_codec import HttpRequest, HttpResponse

_Event = Union[h11.Event, type[h11.NEED_DATA], type[h11.PAUSED]]

RECEIVE_BYTES = 64 * 1024  # an answer is a few hundred bytes

# httpx's default. A stopping Triton waits for open connections, so those of a past rush must not linger.
KEEP_IDLE_S = 5.0


class HttpTransport:
    """A pool of connections, as many as there are calls at once. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: collections.deque[_Connection] = collections.deque()  # the one used last is at the end
        self._lock = threading.Lock()  # held for moments, never while waiting for the server
        self._is_closed = False

    def infer(self, request: Request, deadline: Deadline) -> Reply:
        try:
            response = self._exchange(http_codec.encode_request(request), deadline, request.request_id)
        except socket.timeout:  # noqa: UP041  (not yet TimeoutError in Python 3.9)
            raise deadline.exceeded(request.request_id) from None
        except OSError as error:
            message = f"{self._endpoint}: {error.strerror or error}"
            raise ConnectionFailed(message, request.request_id) from error
        except h11.RemoteProtocolError as error:
            message = f"{self._endpoint}: no HTTP/1.1 comes from there ({error}). Is it the gRPC port?"
            raise ConnectionFailed(message, request.request_id) from error
        return http_codec.decode_response(response, request.request_id)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            while self._idle:
                self._idle.pop().close()

    def _exchange(self, request: HttpRequest, deadline: Deadline, request_id: str) -> HttpResponse:
        """Use an idle connection; where the server has hung up on it meanwhile, the next one or a new one.

        Sending again is safe: it happens only before the first byte of an answer, and an inference changes
        nothing on the server.
        """
        while (connection := self._take_idle()) is not None:
            try:
                return self._exchange_over(connection, request, deadline, request_id)
            except ConnectionError:
                if connection.has_heard:
                    raise
        connection = _Connection(self._endpoint, deadline, request_id)
        return self._exchange_over(connection, request, deadline, request_id)

    def _exchange_over(
        self, connection: _Connection, request: HttpRequest, deadline: Deadline, request_id: str
    ) -> HttpResponse:
        try:
            response = connection.exchange(request, deadline, request_id)
        except BaseException:  # also KeyboardInterrupt: half an answer must not greet the next call
            connection.close()
            raise
        self._put_back(connection)
        return response

    def _take_idle(self) -> Optional[_Connection]:
        """The connection used last, if any. Those that have idled for too long are closed on the way."""
        with self._lock:
            while self._idle and time.monotonic() - self._idle[0].idle_since_s > KEEP_IDLE_S:
                self._idle.popleft().close()
            return self._idle.pop() if self._idle else None

    def _put_back(self, connection: _Connection) -> None:
        with self._lock:
            if connection.start_next_cycle() and not self._is_closed:
                self._idle.append(connection)
            else:
                connection.close()


class _Connection:
    """One socket and the state of the protocol on it. For one thread at a time.

    has_heard     whether any byte of the current answer has come
    idle_since_s  when the last answer ended, on the monotonic clock
    """

    def __init__(self, endpoint: Endpoint, deadline: Deadline, request_id: str) -> None:
        self._authority = endpoint.authority
        self._socket = _connect(endpoint, deadline, request_id)
        self._protocol = h11.Connection(h11.CLIENT)
        self.has_heard = False
        self.idle_since_s = 0.0

    def close(self) -> None:
        self._socket.close()

    def start_next_cycle(self) -> bool:
        """Whether the connection can carry another request; if so, it is ready for it."""
        if self._protocol.our_state is not h11.DONE or self._protocol.their_state is not h11.DONE:
            return False
        self._protocol.start_next_cycle()
        self.idle_since_s = time.monotonic()
        return True

    def exchange(self, request: HttpRequest, deadline: Deadline, request_id: str) -> HttpResponse:
        """Send, then read to the answer's end. Raises OSError or h11.RemoteProtocolError."""
        self.has_heard = False
        headers = [("Host", self._authority), ("User-Agent", "diptych-client"), *request.headers]
        head = h11.Request(method="POST", target=http_codec.TARGET, headers=headers)
        for event in (head, h11.Data(data=request.body), h11.EndOfMessage()):
            self._socket.settimeout(deadline.remaining_s(request_id))
            self._socket.sendall(self._protocol.send(event) or b"")

        answer_head, body = None, []
        while True:
            received = self._next_event(deadline, request_id)
            if isinstance(received, h11.Response):
                answer_head = received
            elif isinstance(received, h11.Data):
                body.append(bytes(received.data))
            elif isinstance(received, h11.EndOfMessage):
                break
        assert answer_head is not None  # h11 lets no message end that has not begun
        pairs = answer_head.headers  # names in lower case
        answer_headers = {name.decode("ascii"): value.decode("latin-1") for name, value in pairs}
        return HttpResponse(answer_head.status_code, answer_headers, b"".join(body))

    def _next_event(self, deadline: Deadline, request_id: str) -> _Event:
        while True:
            event = self._protocol.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._socket.settimeout(deadline.remaining_s(request_id))
            data = self._socket.recv(RECEIVE_BYTES)
            self.has_heard = self.has_heard or bool(data)
            self._protocol.receive_data(data)
            if not data:
                return self._last_event()

    def _last_event(self) -> _Event:
        """The server has closed the connection, which ends some answers and cuts off the others."""
        try:
            return self._protocol.next_event()
        except h11.RemoteProtocolError:
            how = "in the middle of" if self.has_heard else "without"
            raise ConnectionResetError(f"the server closed the connection {how} an answer") from None


def _connect(endpoint: Endpoint, deadline: Deadline, request_id: str) -> socket.socket:
    """Try the host's addresses in turn: `localhost` is often ::1 first, where Triton does not listen."""
    failure: OSError = ConnectionError("the host has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM
    ):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body are two sends
            connection.settimeout(deadline.remaining_s(request_id))
            connection.connect(address)
            return connection
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            failure = error
    raise failure
