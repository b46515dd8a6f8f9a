"""Sends requests over gRPC for asyncio. The same rules as in `_grpc.py`, on the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import service_pb2_grpc

import diptych_client._transports._grpc_wire as wires
from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._errors import ConnectionFailed, DeadlineExceeded, ServerFault
from diptych_client._servers import Address
from diptych_client._tls import Tls
from diptych_client._transports._base import Attempt


class AsyncGrpcTransport:
    """One channel on the running event loop, which carries any number of calls at once."""

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self._address = address
        self._tls = tls
        self._line = _Line(address, tls)
        self._retired: set[_Line] = set()
        self._is_closed = False

    async def infer(self, request: Request, attempt: Attempt) -> Reply:
        message = wires.encode_request(request, attempt.remaining_s())
        return wires.decode_response(await self._call("ModelInfer", message, attempt), request.request_id)

    async def describe(self, attempt: Attempt) -> ServerInfo:
        server = await self._call("ServerMetadata", wires.SERVER_METADATA, attempt)
        ready = await self._call("ModelReady", wires.MODEL_READY, attempt)
        model = await self._call("ModelMetadata", wires.MODEL_METADATA, attempt) if ready.ready else None
        return wires.decode_info(server, ready, model)

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.gather(*(line.close() for line in (self._line, *self._retired)))

    async def _call(self, method: str, message: object, attempt: Attempt) -> Any:
        line = self._line
        if not line.has_answered and wires.must_connect_sooner(attempt):
            await self._require_reachable(attempt)
        remaining_s = attempt.remaining_s()
        call = asyncio.ensure_future(self._begin(line, method, message, attempt, remaining_s))
        line.calls.add(call)
        call.add_done_callback(lambda done: self._forget(line, done))
        # If the caller's task is cancelled, this raises; the call is kept until its answer.
        await asyncio.wait({call}, timeout=remaining_s)
        if not call.done():
            self._note_timeout(line)
            raise attempt.deadline.exceeded(attempt.request_id)
        try:
            response = call.result()
        except DeadlineExceeded:
            self._note_timeout(line)
            raise
        line.num_timeouts, line.has_answered = 0, True
        return response

    async def _begin(
        self, line: _Line, method: str, message: object, attempt: Attempt, remaining_s: float
    ) -> Any:
        """Raises only DiptychError while the event loop runs."""
        request_id = attempt.request_id
        try:
            stub = getattr(line.stub, method)
            return await stub(message, timeout=remaining_s + wires.GRACE_S, metadata=attempt.headers)
        except grpc.RpcError as error:
            found = wires.explain(error, self._address, attempt)
            if isinstance(found, ConnectionFailed):
                line.has_answered = False
            raise found from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if not self._is_closed:  # the event loop ends
                raise
            raise ConnectionFailed(f"{self._address}: the client was closed", request_id) from None
        except grpc.aio.InternalError as error:
            raise ServerFault(f"{self._address}: gRPC: {error}", request_id) from None

    async def _require_reachable(self, attempt: Attempt) -> None:
        """As in `_grpc.py`."""
        loop, address = asyncio.get_running_loop(), self._address
        connecting = loop.create_connection(asyncio.Protocol, address.ip, address.endpoint.port)
        try:
            transport, _ = await asyncio.wait_for(connecting, attempt.connect_timeout_s)
        except asyncio.TimeoutError:
            raise wires.unreachable(address, attempt) from None
        except OSError:
            return
        transport.abort()

    def _note_timeout(self, line: _Line) -> None:
        line.num_timeouts += 1
        if line is self._line and line.num_timeouts >= wires.TIMEOUTS_UNTIL_REPLACED:
            self._retired.add(line)
            self._line = _Line(self._address, self._tls)

    def _forget(self, line: _Line, call: asyncio.Task[Any]) -> None:
        """Retrieve the error, because asyncio reports errors that nobody retrieves."""
        line.calls.discard(call)
        if not call.cancelled():
            call.exception()
        if line in self._retired and not line.calls and not self._is_closed:
            self._retired.discard(line)
            line.closing = asyncio.ensure_future(line.channel.close())


class _Line:
    """One channel and its running calls, including abandoned ones."""

    def __init__(self, address: Address, tls: Tls | None) -> None:
        self.channel = wires.open_channel(address, tls, grpc.aio)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.calls: set[asyncio.Task[Any]] = set()
        self.num_timeouts = 0
        self.has_answered = False
        self.closing: asyncio.Future[None] | None = None

    async def close(self) -> None:
        """Closing cancels, so wait briefly for the answers of abandoned calls."""
        given_up = {call for call in self.calls if not call.done()}
        if given_up:
            await asyncio.wait(given_up, timeout=wires.LINGER_S)
        await self.channel.close()
