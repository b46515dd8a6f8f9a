"""Requests and replies as the protobuf messages of Triton's GRPCInferenceService. No I/O."""

from __future__ import annotations

from typing import Optional

from tritonclient.grpc import service_pb2

from diptych_client.contract import (
    ALL_CLASSES,
    IMAGE,
    INPUT_SHAPE,
    MODEL,
    PROBABILITIES,
    TEXT,
    Reply,
    Request,
    ServerInfo,
    pack_bytes,
)
from diptych_client.errors import ServerFault


def encode_request(request: Request, timeout_s: float) -> service_pb2.ModelInferRequest:
    """timeout_s  how long the request may wait in Triton's queue, which drops it after that"""
    message = service_pb2.ModelInferRequest(model_name=MODEL, id=request.request_id)
    message.parameters["timeout"].int64_param = max(1, int(1e6 * timeout_s))  # microseconds
    for name, value in ((IMAGE, request.image), (TEXT, request.text)):
        message.inputs.add(name=name, datatype="BYTES", shape=INPUT_SHAPE)
        message.raw_input_contents.append(pack_bytes(value))
    output = message.outputs.add(name=PROBABILITIES)
    if request.wants_labels:
        output.parameters["classification"].int64_param = ALL_CLASSES
    return message


def decode_response(message: service_pb2.ModelInferResponse, request_id: str) -> Reply:
    """Raises ServerFault where the answer is not one tensor with its bytes."""
    if len(message.outputs) != 1 or len(message.raw_output_contents) != 1:
        found = f"{len(message.outputs)} outputs and {len(message.raw_output_contents)} raw contents"
        raise ServerFault(f"an answer that is not Triton's: {found} instead of one each", request_id)
    output = message.outputs[0]
    (data,) = message.raw_output_contents
    return Reply(request_id, message.model_version, output.datatype, tuple(output.shape), data)


def decode_info(
    server: service_pb2.ServerMetadataResponse,
    ready: service_pb2.ModelReadyResponse,
    model: Optional[service_pb2.ModelMetadataResponse],
) -> ServerInfo:
    """model  None where the model is not ready, for then Triton does not describe it"""
    versions = () if model is None else tuple(model.versions)
    return ServerInfo(server.name, server.version, versions, ready.ready)
