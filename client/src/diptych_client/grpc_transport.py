"""Carries requests over gRPC: the stubs that tritonclient ships, on a channel of our own.

Not tritonclient's own client class: it would copy every image through an object array and hide the status
code in a string, and its async twin shares no code with it. Its messages serve both.
"""

from __future__ import annotations

import grpc  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import service_pb2_grpc

from diptych_client import grpc_codec
from diptych_client.contract import Reply, Request
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Endpoint
from diptych_client.errors import ConnectionFailed, error_from_grpc

CHANNEL_OPTIONS = (
    # gRPC refuses messages above 4 MiB unless told otherwise, and photographs are larger. -1: no limit here.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # After failed attempts gRPC waits up to two minutes before the next: a restarted server would go unseen.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # As over HTTP: a model server is reached directly, whatever proxy the environment names.
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", "diptych-client"),
)


class GrpcTransport:
    """One channel, which carries any number of calls at once. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = grpc.insecure_channel(endpoint.authority, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, request: Request, deadline: Deadline) -> Reply:
        message = grpc_codec.encode_request(request)
        try:
            response = self._stub.ModelInfer(message, timeout=deadline.remaining_s(request.request_id))
        except grpc.RpcError as error:
            raise self._explain(error.code().name, error.details(), request, deadline) from error
        except ValueError as error:  # how gRPC says that another thread has closed the channel
            raise ConnectionFailed(f"{self._endpoint}: {error}", request.request_id) from error
        return grpc_codec.decode_response(response, request.request_id)

    def close(self) -> None:
        self._channel.close()

    def _explain(self, code: str, details: str, request: Request, deadline: Deadline) -> Exception:
        if code == "DEADLINE_EXCEEDED":
            return deadline.exceeded(request.request_id)
        error = error_from_grpc(code, details, request.request_id)
        if isinstance(error, ConnectionFailed):
            error = ConnectionFailed(f"{self._endpoint}: {error.message}", request.request_id)
        return error
