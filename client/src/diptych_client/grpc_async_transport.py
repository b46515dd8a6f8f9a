"""The twin of `grpc_transport.py` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Optional

import grpc  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import service_pb2_grpc

from diptych_client import grpc_channel, grpc_codec
from diptych_client.contract import Reply, Request, ServerInfo
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address
from diptych_client.errors import ConnectionFailed
from diptych_client.transport import Wire


class AsyncGrpcTransport:
    """One channel on the running event loop, which carries any number of calls at once."""

    def __init__(self, address: Address, wire: Wire) -> None:
        self._address = address
        self._headers = wire.headers
        self._channel = grpc_channel.open_channel(address, wire, grpc.aio)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._given_up: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    async def infer(self, request: Request, deadline: Deadline) -> Reply:
        message = grpc_codec.encode_request(request, deadline.remaining_s(request.request_id))
        response = await self._call(self._stub.ModelInfer, message, deadline, request.request_id)
        return grpc_codec.decode_response(response, request.request_id)

    async def describe(self, deadline: Deadline) -> ServerInfo:
        server = await self._call(self._stub.ServerMetadata, grpc_channel.SERVER_METADATA, deadline)
        ready = await self._call(self._stub.ModelReady, grpc_channel.MODEL_READY, deadline)
        model = None
        if ready.ready:
            model = await self._call(self._stub.ModelMetadata, grpc_channel.MODEL_METADATA, deadline)
        return grpc_codec.decode_info(server, ready, model)

    async def close(self) -> None:
        self._is_closed = True
        if self._given_up:
            await asyncio.wait(self._given_up, timeout=grpc_channel.LINGER_S)
        await self._channel.close()

    async def _call(
        self,
        method: Callable[..., Any],
        message: object,
        deadline: Deadline,
        request_id: Optional[str] = None,
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
            raise grpc_channel.explain(error, self._address, deadline, request_id) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if not self._is_closed:  # the caller's own task was cancelled
                raise
            raise ConnectionFailed(f"{self._address}: the client was closed", request_id) from None
        finally:
            if not call.done():  # given up, by its deadline or its caller, and left to its answer
                self._given_up.add(call)

    async def _begin(self, method: Callable[..., Any], message: object, remaining_s: float) -> Any:
        timeout_s = remaining_s + grpc_channel.GRACE_S
        return await method(message, timeout=timeout_s, metadata=self._headers.pairs())

    def _forget(self, call: asyncio.Task[Any]) -> None:
        """An error that is never looked at would be reported by asyncio."""
        self._given_up.discard(call)
        if not call.cancelled():
            call.exception()
