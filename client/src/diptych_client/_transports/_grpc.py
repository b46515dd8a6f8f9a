"""Sends requests over gRPC, blocking: tritonclient's stubs on our own channel."""

from __future__ import annotations

import atexit
import contextlib
import socket
import sys
import threading
import time
import weakref
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import service_pb2_grpc

import diptych_client._transports._grpc_wire as wires
from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._errors import ConnectionFailed
from diptych_client._servers import Address
from diptych_client._tls import Tls
from diptych_client._transports._base import Attempt

# Channels of the parent, in a forked child: closing them there may hang.
_ABANDONED: list[object] = []
# Open channels. An unclosed one hangs the interpreter at exit: gRPC's destructor waits for a thread that has
# ended.
_OPEN: weakref.WeakSet[_Line] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for line in list(_OPEN):
        line.channel.close()


class GrpcTransport:
    """One channel, which carries any number of calls at once. Safe to share between threads."""

    def __init__(self, address: Address, tls: Tls | None) -> None:
        wires.cooperate_with_gevent()
        self._address = address
        self._tls = tls
        self._lock = threading.Lock()  # held for moments
        self._line = _Line(address, tls)

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        message = wires.encode_request(request, attempt.remaining_s())
        return wires.decode_response(self._call("ModelInfer", message, attempt), request.request_id)

    def describe(self, attempt: Attempt) -> ServerInfo:
        server = self._call("ServerMetadata", wires.SERVER_METADATA, attempt)
        ready = self._call("ModelReady", wires.MODEL_READY, attempt)
        model = self._call("ModelMetadata", wires.MODEL_METADATA, attempt) if ready.ready else None
        return wires.decode_info(server, ready, model)

    def close(self) -> None:
        self._line.close()

    def abandon(self) -> None:
        _ABANDONED.append(self)
        _OPEN.discard(self._line)

    def _call(self, method: str, message: object, attempt: Attempt) -> Any:
        line = self._take_line()
        try:
            if not line.has_answered and wires.must_connect_sooner(attempt):
                self._require_reachable(attempt)
            response = self._call_over(line, method, message, attempt)
        except TimeoutError:  # DeadlineExceeded is one
            self._note_timeout(line)
            raise
        finally:
            self._leave(line)
        line.num_timeouts, line.has_answered = 0, True
        return response

    def _call_over(self, line: _Line, method: str, message: object, attempt: Attempt) -> Any:
        if sys.is_finalizing():
            raise ConnectionFailed(f"{self._address}: the interpreter has ended its threads")
        remaining_s, metadata = attempt.remaining_s(), attempt.headers
        stub = getattr(line.stub, method)
        try:
            if remaining_s > wires.LONG_S:
                return stub(message, timeout=remaining_s, metadata=metadata)
            call = stub.future(message, timeout=remaining_s + wires.GRACE_S, metadata=metadata)
            return call.result(remaining_s)
        except grpc.FutureTimeoutError:
            self._give_up(line, call)
            raise attempt.deadline.exceeded(attempt.request_id) from None
        except grpc.RpcError as error:
            found = wires.explain(error, self._address, attempt)
            if isinstance(found, ConnectionFailed):
                line.has_answered = False
            raise found from None
        except ValueError as error:  # how gRPC says that another thread has closed the channel
            raise ConnectionFailed(f"{self._address}: {error}", attempt.request_id) from None

    def _require_reachable(self, attempt: Attempt) -> None:
        """Connect with a time limit, if gRPC's own would be too long. The call finds other failures."""
        target = self._address.ip, self._address.endpoint.port
        try:
            socket.create_connection(target, attempt.connect_timeout_s).close()
        except TimeoutError:
            raise wires.unreachable(self._address, attempt) from None
        except OSError:
            pass

    def _take_line(self) -> _Line:
        with self._lock:
            self._line.num_calls += 1
            return self._line

    def _note_timeout(self, line: _Line) -> None:
        line.num_timeouts += 1  # a race between threads counts one less, at worst
        with self._lock:
            if line is self._line and line.num_timeouts >= wires.TIMEOUTS_UNTIL_REPLACED:
                line.is_retired = True
                self._line = _Line(self._address, self._tls)

    def _give_up(self, line: _Line, call: Any) -> None:
        """Keep a call until its answer comes: without a reference it would be cancelled."""
        with self._lock:
            line.num_calls += 1
            line.given_up.add(call)
        call.add_done_callback(lambda done: self._forget(line, done))

    def _forget(self, line: _Line, call: Any) -> None:
        line.given_up.discard(call)
        self._leave(line)

    def _leave(self, line: _Line) -> None:
        with self._lock:
            line.num_calls -= 1
            is_over = line.is_retired and not line.num_calls
        if is_over:
            # In a thread: this one may be gRPC's, and closing waits for it.
            threading.Thread(target=line.channel.close, name="diptych-close", daemon=True).start()


class _Line:
    """One channel.

    num_calls     running calls, including abandoned ones
    num_timeouts  calls in a row without an answer in time
    is_retired    whether it takes no more calls and is closed after the last one
    """

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self.channel = wires.open_channel(address, tls, grpc)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.given_up: set[Any] = set()
        self.num_calls = 0
        self.num_timeouts = 0
        self.is_retired = False
        self.has_answered = False
        _OPEN.add(self)

    def close(self) -> None:
        """Closing cancels, so wait briefly for the answers of abandoned calls."""
        ends_s = time.monotonic() + wires.LINGER_S
        for call in tuple(self.given_up):
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.exception(max(0.0, ends_s - time.monotonic()))
        self.channel.close()
