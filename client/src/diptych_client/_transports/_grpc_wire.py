"""gRPC without its channel: messages, settings and errors of both gRPC transports.

tritonclient's client class is not used: it copies every image through an object array, hides the status
code in a string, and shares no code with its async class. Its messages are used.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from tritonclient.grpc import service_pb2

from diptych_client._answer import (
    ALL_CLASSES,
    IMAGE,
    INPUT_SHAPE,
    LABELS_IDENTITY,
    MODEL,
    OUTPUTS,
    PROBABILITIES,
    TEXT,
    Reply,
    Request,
    ServerInfo,
    pack_bytes,
    read_identity,
)
from diptych_client._errors import (
    ConnectionFailed,
    DiptychError,
    ServerFault,
    error_from_grpc,
    wrong_answer,
)
from diptych_client._servers import CONNECT_TIMEOUT_S, Address
from diptych_client._tls import Tls
from diptych_client._transports._base import Attempt


def encode_request(request: Request, timeout_s: float) -> service_pb2.ModelInferRequest:
    """timeout_s  how long the request may wait in Triton's queue, which drops it after that"""
    message = service_pb2.ModelInferRequest(model_name=MODEL, id=request.request_id)
    message.parameters["timeout"].int64_param = max(1, int(1e6 * timeout_s))  # microseconds
    for name, value in ((IMAGE, request.image), (TEXT, request.text)):
        message.inputs.add(name=name, datatype="BYTES", shape=INPUT_SHAPE)
        message.raw_input_contents.append(pack_bytes(value))
    output = message.outputs.add(name=PROBABILITIES)
    message.outputs.add(name=LABELS_IDENTITY)
    if request.wants_labels:
        output.parameters["classification"].int64_param = ALL_CLASSES
    return message


def decode_response(message: service_pb2.ModelInferResponse, request_id: str) -> Reply:
    """Raises ConnectionFailed for another request's answer, ServerFault if it is not two tensors with their
    bytes."""
    if message.id != request_id:
        raise wrong_answer(message.id, request_id)
    if len(message.outputs) != len(message.raw_output_contents):
        found = f"{len(message.outputs)} outputs and {len(message.raw_output_contents)} raw contents"
        raise ServerFault(f"an answer that is not Triton's: {found}", request_id)
    tensors = {
        output.name: (output, data)
        for output, data in zip(message.outputs, message.raw_output_contents, strict=True)
    }
    if not tensors.keys() >= set(OUTPUTS):
        found = f"outputs {sorted(tensors)} instead of {sorted(OUTPUTS)}"
        raise ServerFault(f"an answer that is not Triton's: {found}", request_id)
    output, data = tensors[PROBABILITIES]
    labels, labels_data = tensors[LABELS_IDENTITY]
    identity = read_identity(tuple(labels.shape), labels_data, request_id)
    return Reply(request_id, message.model_version, identity, output.datatype, tuple(output.shape), data)


def decode_info(
    server: service_pb2.ServerMetadataResponse,
    ready: service_pb2.ModelReadyResponse,
    model: service_pb2.ModelMetadataResponse | None,
) -> ServerInfo:
    """model  None if the model is not ready: then Triton does not describe it"""
    versions = () if model is None else tuple(model.versions)
    return ServerInfo(server.name, server.version, versions, ready.ready)


SERVER_METADATA = service_pb2.ServerMetadataRequest()
MODEL_READY = service_pb2.ModelReadyRequest(name=MODEL)
MODEL_METADATA = service_pb2.ModelMetadataRequest(name=MODEL)

# A gRPC deadline cancels the call in the server, which can crash tritonserver 2.51.0 (docs/promises.md). So
# the caller's deadline is kept here, and gRPC's is later by this. The request's `timeout` is still the
# caller's, so Triton drops late requests from its queue.
GRACE_S = 5.0
# Closing cancels too: seconds to wait for the answers of abandoned calls.
LINGER_S = 2.0
# After this number of calls in a row without an answer in time, the next one gets a new channel: a connection
# that was dropped silently, such as by a load balancer, stays open for a quarter of an hour.
TIMEOUTS_UNTIL_REPLACED = 3
# A blocking call cannot be abandoned; one that can needs another thread, 0.2 ms of CPU more. With more than
# this time left there is an answer or a refusal in time, unless the server hangs.
LONG_S = 5.0

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # gRPC's default limit is 4 MiB, and photos are larger. -1: no limit.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # After failed attempts gRPC waits up to two minutes by default, too long for a restarted server.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name, the timeout of one attempt to connect; gRPC's default is 20 s.
    ("grpc.min_reconnect_backoff_ms", int(1000 * CONNECT_TIMEOUT_S)),
    # A ping if a call has had no data for this time. tritonserver allows one in five minutes by default
    # (--grpc-http2-min-recv-ping-interval-without-data 300000) and ends connections that send more. With
    # keepalive, Linux also ends a connection whose bytes nobody has confirmed for the timeout's length.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Clients of one process share neither connections nor their failures.
    ("grpc.use_local_subchannel_pool", 1),
    # As over HTTP: connect directly, without the environment's proxy.
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", "diptych-client"),
)


def open_channel(address: Address, tls: Tls | None, kind: Any) -> Any:
    """kind  the module whose channels are wanted, `grpc` or `grpc.aio`"""
    options = [*_OPTIONS, ("grpc.default_authority", address.endpoint.authority)]
    if not address.endpoint.is_secure:
        return kind.insecure_channel(address.authority, options=options)
    tls = tls or Tls()
    # We connect to an IP address, and the certificate names the host.
    options.append(("grpc.ssl_target_name_override", tls.server_name or address.endpoint.host))
    return kind.secure_channel(address.authority, tls.grpc_credentials(), options=options)


@functools.cache
def cooperate_with_gevent() -> None:
    """If gevent has patched the sockets, set up gRPC for it, or its waiting blocks all greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket"):
        from grpc.experimental import gevent  # type: ignore[import-untyped,unused-ignore]

        gevent.init_gevent()


def must_connect_sooner(attempt: Attempt) -> bool:
    """Whether gRPC's attempt to connect would use the time for other servers."""
    return attempt.connect_timeout_s < min(CONNECT_TIMEOUT_S, attempt.remaining_s())


def unreachable(address: Address, attempt: Attempt) -> ConnectionFailed:
    limit_s = attempt.connect_timeout_s
    return ConnectionFailed(f"{address}: no connection within {limit_s:.2g} s", attempt.request_id)


def explain(error: Any, address: Address, attempt: Attempt) -> DiptychError:
    """Our error for a grpc.RpcError of either kind of channel."""
    code, request_id = error.code().name, attempt.request_id
    if code == "DEADLINE_EXCEEDED":
        return attempt.deadline.exceeded(request_id)
    trailers = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    found = error_from_grpc(code, error.details() or "", request_id, trailers.get("retry-after"))
    if not isinstance(found, ConnectionFailed):
        return found
    failure = ConnectionFailed(f"{address}: {found.message}", request_id)
    failure.status, failure.retry_after_s = found.status, found.retry_after_s
    return failure
