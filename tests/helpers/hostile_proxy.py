"""A TCP proxy in front of a real server that passes bytes on, or does to them what networks do.

Every fault is one of `Fault`, and can be changed while connections are open. With a TLS context it ends TLS,
as the proxies do that stand before Triton's HTTP port.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator

CHUNK_BYTES = 64 * 1024
STALL_S = 2.0


class Fault(enum.Enum):
    NONE = "bytes pass"
    BLACK_HOLE = "bytes are taken and never passed on"
    RESET_IN_MID_ANSWER = "half of the next answer passes, then the connection is reset"
    HALF_CLOSED_IN_MID_ANSWER = "half of the next answer passes, then its direction is closed in good order"
    STALL = "each answer waits for two seconds"


class HostileProxy:
    """A context manager: inside the `with` it listens on `port`.

    num_connections  accepted so far
    num_faults       how many answers were cut so far
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.fault = Fault.NONE
        self.faults_left: int | None = None  # None: for ever; else the fault ends after so many cut answers
        self.num_connections = 0
        self.num_faults = 0
        self._target = target
        self._tls = tls
        self._listen = listen
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._is_stopped = False

    def __enter__(self) -> HostileProxy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, after `stop` on the same port as before."""
        self._is_stopped = False
        self._listener = socket.create_server(self._listen)
        self._listen = self._listener.getsockname()[:2]
        self._start(self._accept, self._listener)

    def stop(self) -> None:
        """Nobody listens any more, and every connection is reset."""
        self._is_stopped = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._threads.clear()

    def drop_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                _reset(connection)

    @property
    def port(self) -> int:
        return self._listen[1]

    def _start(self, run, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.num_connections += 1
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.callback(client.close)
            if self._tls is not None:
                client.settimeout(5)
                client = self._tls.wrap_socket(client, server_side=True)
                client.settimeout(None)
                stack.callback(client.close)
            server = stack.enter_context(socket.create_connection(self._target))
            with self._registered(client, server):
                answers = threading.Thread(target=self._pass_answers, args=(server, client), daemon=True)
                answers.start()
                self._pass_requests(client, server)
                answers.join()

    @contextlib.contextmanager
    def _registered(self, *connections: socket.socket) -> Iterator[None]:
        with self._lock:
            if self._is_stopped:
                raise ConnectionAbortedError
            self._open.update(connections)
        try:
            yield
        finally:
            with self._lock:
                self._open.difference_update(connections)

    def _pass_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                if self.fault is not Fault.BLACK_HOLE:
                    server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _pass_answers(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                if not self._pass_answer(data, client):
                    return
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _pass_answer(self, data: bytes, client: socket.socket) -> bool:
        """Whether more may follow."""
        fault = self.fault
        if fault is Fault.BLACK_HOLE:
            return True
        if fault is Fault.STALL:
            time.sleep(STALL_S)
        if fault not in (Fault.RESET_IN_MID_ANSWER, Fault.HALF_CLOSED_IN_MID_ANSWER) or not self._may_cut():
            client.sendall(data)
            return True
        client.sendall(data[: len(data) // 2])
        if fault is Fault.RESET_IN_MID_ANSWER:
            _reset(client)
        else:
            client.shutdown(socket.SHUT_WR)
        return False

    def _may_cut(self) -> bool:
        with self._lock:
            if self.faults_left == 0:
                return False
            self.num_faults += 1
            if self.faults_left is not None:
                self.faults_left -= 1
            return True


def _reset(connection: socket.socket) -> None:
    """End it with a TCP reset, also where another thread waits in it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes the other thread without a farewell to the peer
        connection.close()
