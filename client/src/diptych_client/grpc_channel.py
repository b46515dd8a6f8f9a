"""The channel's settings, and what its failures mean: all that the blocking and the async transport share.

Not tritonclient's own client class: it would copy every image through an object array and hide the status
code in a string, and its async twin shares no code with it. Its messages serve both.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Optional

from tritonclient.grpc import service_pb2

from diptych_client.contract import MODEL
from diptych_client.deadline import Deadline
from diptych_client.endpoint import Address
from diptych_client.errors import ConnectionFailed, DiptychError, error_from_grpc
from diptych_client.tls import Tls
from diptych_client.transport import CONNECT_TIMEOUT_S, Wire

SERVER_METADATA = service_pb2.ServerMetadataRequest()
MODEL_READY = service_pb2.ModelReadyRequest(name=MODEL)
MODEL_METADATA = service_pb2.ModelMetadataRequest(name=MODEL)

# A deadline that the server sees cancels the call there, and in tritonserver 2.51.0 that races with the
# answer: docs/promises.md. So the caller's deadline is kept here, and gRPC's own lies this much later. The
# `timeout` in the request is still the caller's: what is late is dropped from Triton's queue.
GRACE_S = 5.0
# Closing cancels too: how long it waits for the answers that nobody waits for any more.
LINGER_S = 2.0
# A blocking call cannot be given up, and one that can be takes another thread, 0.2 ms of CPU more. Who has
# this much time left has an answer or a refusal by then, unless the server hangs.
LONG_S = 5.0

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # gRPC refuses messages above 4 MiB unless told otherwise, and photographs are larger. -1: no limit here.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # After failed attempts gRPC waits up to two minutes before the next: a restarted server would go unseen.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name, how long one attempt to connect may take; gRPC's default is 20 s.
    ("grpc.min_reconnect_backoff_ms", int(1000 * CONNECT_TIMEOUT_S)),
    # Clients of one process do not share connections, nor the memory of failed ones.
    ("grpc.use_local_subchannel_pool", 1),
    # As over HTTP: a model server is reached directly, whatever proxy the environment names.
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", "diptych-client"),
)


def open_channel(address: Address, wire: Wire, kind: Any) -> Any:
    """kind  the module whose channels are wanted, `grpc` or `grpc.aio`"""
    options = [*_OPTIONS, ("grpc.default_authority", address.endpoint.authority)]
    if not address.endpoint.is_secure:
        return kind.insecure_channel(address.authority, options=options)
    tls = wire.tls or Tls()
    # We connect to an IP address, and the certificate names the host.
    options.append(("grpc.ssl_target_name_override", tls.server_name or address.endpoint.host))
    return kind.secure_channel(address.authority, tls.grpc_credentials(), options=options)


@functools.cache
def cooperate_with_gevent() -> None:
    """Where gevent has patched the sockets, gRPC must be told, or its waiting blocks all greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket"):
        from grpc.experimental import gevent  # type: ignore[import-untyped,unused-ignore]

        gevent.init_gevent()


def explain(error: Any, address: Address, deadline: Deadline, request_id: Optional[str]) -> DiptychError:
    """Ours for a grpc.RpcError, of either kind of channel."""
    code = error.code().name
    if code == "DEADLINE_EXCEEDED":
        return deadline.exceeded(request_id)
    found = error_from_grpc(code, error.details() or "", request_id)
    if isinstance(found, ConnectionFailed):
        return ConnectionFailed(f"{address}: {found.message}", request_id)
    return found
