"""Carries requests over gRPC: the stubs that tritonclient ships, on a channel of our own."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Optional

import grpc  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import service_pb2_grpc

from diptych_client import grpc_channel, grpc_codec
from diptych_client.contract import Reply, Request, ServerInfo
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address
from diptych_client.errors import ConnectionFailed
from diptych_client.transport import Wire


class GrpcTransport:
    """One channel, which carries any number of calls at once. Safe to share between threads."""

    def __init__(self, address: Address, wire: Wire) -> None:
        grpc_channel.cooperate_with_gevent()
        self._address = address
        self._headers = wire.headers
        self._channel = grpc_channel.open_channel(address, wire, grpc)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._given_up: set[Any] = set()  # calls that would be cancelled if nobody held them

    def infer(self, request: Request, deadline: Deadline) -> Reply:
        message = grpc_codec.encode_request(request, deadline.remaining_s(request.request_id))
        response = self._call(self._stub.ModelInfer, message, deadline, request.request_id)
        return grpc_codec.decode_response(response, request.request_id)

    def describe(self, deadline: Deadline) -> ServerInfo:
        server = self._call(self._stub.ServerMetadata, grpc_channel.SERVER_METADATA, deadline)
        ready = self._call(self._stub.ModelReady, grpc_channel.MODEL_READY, deadline)
        model = None
        if ready.ready:
            model = self._call(self._stub.ModelMetadata, grpc_channel.MODEL_METADATA, deadline)
        return grpc_codec.decode_info(server, ready, model)

    def close(self) -> None:
        ends_s = time.monotonic() + grpc_channel.LINGER_S
        for call in tuple(self._given_up):
            with contextlib.suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.exception(max(0.0, ends_s - time.monotonic()))
        self._channel.close()

    def _call(
        self,
        method: Any,
        message: object,
        deadline: Deadline,
        request_id: Optional[str] = None,
    ) -> Any:
        remaining_s, metadata = deadline.remaining_s(request_id), self._headers.pairs()
        try:
            if remaining_s > grpc_channel.LONG_S:
                return method(message, timeout=remaining_s, metadata=metadata)
            call = method.future(message, timeout=remaining_s + grpc_channel.GRACE_S, metadata=metadata)
            return call.result(remaining_s)
        except grpc.FutureTimeoutError:
            self._given_up.add(call)
            call.add_done_callback(self._given_up.discard)
            raise deadline.exceeded(request_id) from None
        except grpc.RpcError as error:
            raise grpc_channel.explain(error, self._address, deadline, request_id) from None
        except ValueError as error:  # how gRPC says that another thread has closed the channel
            raise ConnectionFailed(f"{self._address}: {error}", request_id) from None
