"""Carries requests over gRPC, blocking and for asyncio: tritonclient's stubs on a channel of our own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import service_pb2_grpc

from diptych_client._answer import Reply, Request, ServerInfo
from diptych_client._errors import ConnectionFailed
from diptych_client._retries import Deadline
from diptych_client._servers import Address
from diptych_client._transports import _grpc_wire as wires
from diptych_client._transports._base import Wire


class GrpcTransport:
    """One channel, which carries any number of calls at once. Safe to share between threads."""

    def __init__(self, address: Address, wire: Wire) -> None:
        wires.cooperate_with_gevent()
        self._address = address
        self._headers = wire.headers
        self._channel = wires.open_channel(address, wire, grpc)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._given_up: set[Any] = set()  # calls that would be cancelled if nobody held them

    def infer(self, request: Request, deadline: Deadline) -> Reply:
        message = wires.encode_request(request, deadline.remaining_s(request.request_id))
        response = self._call(self._stub.ModelInfer, message, deadline, request.request_id)
        return wires.decode_response(response, request.request_id)

    def describe(self, deadline: Deadline) -> ServerInfo:
        server = self._call(self._stub.ServerMetadata, wires.SERVER_METADATA, deadline)
        ready = self._call(self._stub.ModelReady, wires.MODEL_READY, deadline)
        model = None
        if ready.ready:
            model = self._call(self._stub.ModelMetadata, wires.MODEL_METADATA, deadline)
        return wires.decode_info(server, ready, model)

    def close(self) -> None:
        ends_s = time.monotonic() + wires.LINGER_S
        for call in tuple(self._given_up):
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.exception(max(0.0, ends_s - time.monotonic()))
        self._channel.close()

    def _call(
        self,
        method: Any,
        message: object,
        deadline: Deadline,
        request_id: str | None = None,
    ) -> Any:
        remaining_s, metadata = deadline.remaining_s(request_id), self._headers.pairs()
        try:
            if remaining_s > wires.LONG_S:
                return method(message, timeout=remaining_s, metadata=metadata)
            call = method.future(message, timeout=remaining_s + wires.GRACE_S, metadata=metadata)
            return call.result(remaining_s)
        except grpc.FutureTimeoutError:
            self._given_up.add(call)
            call.add_done_callback(self._given_up.discard)
            raise deadline.exceeded(request_id) from None
        except grpc.RpcError as error:
            raise wires.explain(error, self._address, deadline, request_id) from None
        except ValueError as error:  # how gRPC says that another thread has closed the channel
            raise ConnectionFailed(f"{self._address}: {error}", request_id) from None


class AsyncGrpcTransport:
    """One channel on the running event loop, which carries any number of calls at once."""

    def __init__(self, address: Address, wire: Wire) -> None:
        self._address = address
        self._headers = wire.headers
        self._channel = wires.open_channel(address, wire, grpc.aio)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._given_up: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    async def infer(self, request: Request, deadline: Deadline) -> Reply:
        message = wires.encode_request(request, deadline.remaining_s(request.request_id))
        response = await self._call(self._stub.ModelInfer, message, deadline, request.request_id)
        return wires.decode_response(response, request.request_id)

    async def describe(self, deadline: Deadline) -> ServerInfo:
        server = await self._call(self._stub.ServerMetadata, wires.SERVER_METADATA, deadline)
        ready = await self._call(self._stub.ModelReady, wires.MODEL_READY, deadline)
        model = None
        if ready.ready:
            model = await self._call(self._stub.ModelMetadata, wires.MODEL_METADATA, deadline)
        return wires.decode_info(server, ready, model)

    async def close(self) -> None:
        self._is_closed = True
        if self._given_up:
            await asyncio.wait(self._given_up, timeout=wires.LINGER_S)
        await self._channel.close()

    async def _call(
        self,
        method: Callable[..., Any],
        message: object,
        deadline: Deadline,
        request_id: str | None = None,
    ) -> Any:
        remaining_s = deadline.remaining_s(request_id)
        call = asyncio.ensure_future(self._begin(method, message, remaining_s))
        call.add_done_callback(self._forget)
        try:
            await asyncio.wait([call], timeout=remaining_s)
            return call.result()
        except asyncio.InvalidStateError:
            raise deadline.exceeded(request_id) from None
        except grpc.RpcError as error:
            raise wires.explain(error, self._address, deadline, request_id) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if not self._is_closed:  # the caller's own task was cancelled
                raise
            raise ConnectionFailed(f"{self._address}: the client was closed", request_id) from None
        finally:
            if not call.done():  # given up, by its deadline or its caller, and left to its answer
                self._given_up.add(call)

    async def _begin(self, method: Callable[..., Any], message: object, remaining_s: float) -> Any:
        timeout_s = remaining_s + wires.GRACE_S
        return await method(message, timeout=timeout_s, metadata=self._headers.pairs())

    def _forget(self, call: asyncio.Task[Any]) -> None:
        """An error that is never looked at would be reported by asyncio."""
        self._given_up.discard(call)
        if not call.cancelled():
            call.exception()
