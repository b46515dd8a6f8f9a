"""One request and one reply as the protobuf messages of Triton's GRPCInferenceService. No I/O."""

from __future__ import annotations

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
    pack_bytes,
)
from diptych_client.errors import ServerFault


def encode_request(request: Request) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name=MODEL, id=request.request_id)
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
