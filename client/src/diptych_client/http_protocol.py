"""One HTTP/1.1 connection without its socket: bytes in, bytes out. h11 does the work.

Why not a larger library: tritonclient's HTTP half is not thread-safe and brings gevent, and the timeouts of
http.client, urllib3 and httpx start anew with every packet, so that a server that trickles its answer holds a
caller for ever. h11 does no I/O: every single wait can ask the call's one deadline, and the blocking and the
async transport share all but the sockets.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from typing import Optional, Union

import h11

from diptych_client.endpoint import Address
from diptych_client.errors import ConnectionFailed, DiptychError
from diptych_client.http_codec import HttpRequest, HttpResponse

RECEIVE_BYTES = 64 * 1024  # an answer is a few hundred bytes

# httpx's default. A stopping Triton waits for open connections, so those of a past rush must not linger.
KEEP_IDLE_S = 5.0

# How a connection that the server has closed meanwhile shows itself at its next use.
HUNG_UP = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
FAILURES = (OSError, h11.RemoteProtocolError)


class HttpProtocol:
    """For one request at a time.

    has_heard  whether any byte of the current answer has come
    """

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._connection = h11.Connection(h11.CLIENT)
        self._head: Optional[h11.Response] = None
        self._body: list[bytes] = []
        self._idle_since_s = 0.0
        self.has_heard = False

    @property
    def has_idled_too_long(self) -> bool:
        return time.monotonic() - self._idle_since_s > KEEP_IDLE_S

    def send(self, request: HttpRequest, extra: tuple[tuple[str, str], ...]) -> Iterator[bytes]:
        """What to write, in parts. `extra` are the caller's headers."""
        self.has_heard = False
        self._head, self._body = None, []
        ours = (("Host", self._authority), ("User-Agent", "diptych-client"), *request.headers)
        theirs = [(name, value) for name, value in extra if name != "user-agent"]
        events: list[h11.Event] = [
            h11.Request(method=request.method, target=request.target, headers=[*ours, *theirs])
        ]
        if request.body:
            events.append(h11.Data(data=request.body))
        for event in (*events, h11.EndOfMessage()):
            if data := self._connection.send(event):
                yield data

    def receive(self, data: bytes) -> Optional[HttpResponse]:
        """Take what was read, b"" for the end of the stream; return the answer once it is whole.

        Raises h11.RemoteProtocolError, or ConnectionResetError where the stream ended too early.
        """
        self.has_heard = self.has_heard or bool(data)
        self._connection.receive_data(data)
        try:
            return self._read_events()
        except h11.RemoteProtocolError:
            if data:
                raise
            how = "in the middle of" if self.has_heard else "without"
            raise ConnectionResetError(f"the server closed the connection {how} an answer") from None

    def start_next_cycle(self) -> bool:
        """Whether the connection can carry another request; if so, it is ready for it."""
        if self._connection.our_state is not h11.DONE or self._connection.their_state is not h11.DONE:
            return False
        self._connection.start_next_cycle()
        self._idle_since_s = time.monotonic()
        return True

    def _read_events(self) -> Optional[HttpResponse]:
        while True:
            event: Union[h11.Event, type[h11.NEED_DATA], type[h11.PAUSED]] = self._connection.next_event()
            if isinstance(event, h11.Response):
                self._head = event
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None  # h11 lets no message end that has not begun
                pairs = self._head.headers  # names in lower case
                headers = {name.decode("ascii"): value.decode("latin-1") for name, value in pairs}
                return HttpResponse(self._head.status_code, headers, b"".join(self._body))
            elif event is h11.NEED_DATA:
                return None


def explain(error: Exception, address: Address, request_id: Optional[str]) -> DiptychError:
    """Ours for one of FAILURES."""
    if isinstance(error, h11.RemoteProtocolError):
        message = f"no HTTP/1.1 comes from there ({error}). Is it the gRPC port?"
    else:
        message = str((isinstance(error, OSError) and error.strerror) or error)
    return ConnectionFailed(f"{address}: {message}", request_id)
