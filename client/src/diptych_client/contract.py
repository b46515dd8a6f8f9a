"""The served contract: what one call asks of the ensemble and what it gets back, on any wire.

No I/O and no wire format beyond the layout of BYTES and FP32 tensors, which gRPC and HTTP share.
"""

from __future__ import annotations

import dataclasses
import os
import struct

from diptych_client.errors import ServerFault

MODEL = "classifier"
IMAGE = "image"
TEXT = "text"
PROBABILITIES = "probabilities"
INPUT_SHAPE = (1, 1)  # one row of one element

# How many classes a request for labels asks for: all. Triton answers with as many as there are.
ALL_CLASSES = 2**16


@dataclasses.dataclass(frozen=True)
class Request:
    """One row. Both inputs are always sent, empty for absent: Triton does not batch requests that carry
    different sets of optional inputs.

    wants_labels  asks for Triton's classification strings instead of FP32 values
    """

    image: bytes = b""
    text: bytes = b""
    wants_labels: bool = False
    request_id: str = dataclasses.field(default_factory=lambda: os.urandom(16).hex())


@dataclasses.dataclass(frozen=True)
class Reply:
    """The output `probabilities` as it came, and who sent it."""

    request_id: str
    model_version: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    def floats(self) -> tuple[float, ...]:
        """The values of one row of FP32."""
        num_values = self._num_values("FP32")
        if len(self.data) != 4 * num_values:
            raise self.fault(f"{len(self.data)} bytes for {num_values} FP32 values")
        return struct.unpack(f"<{num_values}f", self.data)

    def strings(self) -> tuple[bytes, ...]:
        """The elements of one row of BYTES."""
        num_values = self._num_values("BYTES")
        try:
            elements = unpack_bytes(self.data)
        except struct.error:
            elements = ()
        if len(elements) != num_values:
            raise self.fault(f"{len(self.data)} bytes that do not hold {num_values} BYTES elements")
        return elements

    def fault(self, found: str) -> ServerFault:
        message = f"model {MODEL!r}, output {PROBABILITIES!r}: {found}. Is this a Diptych repository?"
        return ServerFault(message, self.request_id)

    def _num_values(self, datatype: str) -> int:
        if self.datatype != datatype or len(self.shape) != 2 or self.shape[0] != 1 or self.shape[1] < 1:
            raise self.fault(f"{self.datatype} {list(self.shape)} instead of {datatype} [1, num_labels]")
        return self.shape[1]


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """A server and the model on it.

    name, version   of the server's software, as in 'triton', '2.51.0'
    model_versions  of the ensemble, as many as are loaded; empty where it is unknown there
    is_ready        whether the server calls the ensemble ready; a dead process behind it may go unseen
    """

    name: str
    version: str
    model_versions: tuple[str, ...]
    is_ready: bool


def pack_bytes(value: bytes) -> bytes:
    """One element of a BYTES tensor: its length in 4 bytes, little-endian, then itself.

    By hand, because the way over `np.bytes_` drops trailing zero bytes.
    """
    return struct.pack("<I", len(value)) + value


def unpack_bytes(data: bytes) -> tuple[bytes, ...]:
    """The elements of a BYTES tensor. Raises struct.error where the data ends too early."""
    elements = []
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        (element,) = struct.unpack_from(f"{length}s", data, start + 4)
        elements.append(element)
        start += 4 + length
    return tuple(elements)
