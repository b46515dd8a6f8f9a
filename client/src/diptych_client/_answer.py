"""The served contract: the request to the ensemble, its reply, and the answer made from it.

No I/O, and no wire format except the layout of BYTES and FP32 tensors, which gRPC and HTTP share.
"""

from __future__ import annotations

import dataclasses
import math
import os
import struct
from collections.abc import Mapping
from typing import Literal, NamedTuple

from diptych_client._errors import DiptychError, ServerFault

MODEL = "classifier"
IMAGE = "image"
TEXT = "text"
PROBABILITIES = "probabilities"
# The identity of labels.txt: the first 16 hex digits of its SHA-256.
LABELS_IDENTITY = "labels_sha256"
OUTPUTS = (PROBABILITIES, LABELS_IDENTITY)
INPUT_SHAPE = (1, 1)  # one row of one element

# The number of classes in a request for labels: more than any model has, so Triton returns all.
ALL_CLASSES = 2**16


@dataclasses.dataclass(frozen=True)
class Request:
    """One row. Both inputs are always sent, empty if absent (docs/triton.md, 21).

    wants_labels  asks for Triton's classification strings instead of FP32 values
    is_probe      not a caller's item: the client's own request for labels or health
    """

    image: bytes = b""
    text: bytes = b""
    wants_labels: bool = False
    is_probe: bool = False
    request_id: str = dataclasses.field(default_factory=lambda: os.urandom(16).hex())


@dataclasses.dataclass(frozen=True)
class Reply:
    """The raw output `probabilities`, the identity of its labels, and the version that answered."""

    request_id: str
    model_version: str
    labels_identity: str
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
    model_versions  loaded versions of the ensemble; empty if the server does not know it
    is_ready        whether the server calls the ensemble ready, which it also does if a model process is dead
    """

    name: str
    version: str
    model_versions: tuple[str, ...]
    is_ready: bool


def pack_bytes(value: bytes) -> bytes:
    """One element of a BYTES tensor: its length in 4 bytes, little-endian, then the bytes.

    By hand, because `np.bytes_` drops trailing zero bytes.
    """
    return struct.pack("<I", len(value)) + value


def read_identity(shape: tuple[int, ...], data: bytes, request_id: str) -> str:
    """The output `labels_sha256` of one row. Raises ServerFault."""
    try:
        elements = unpack_bytes(data)
        if shape != (1, 1) or len(elements) != 1:
            raise ValueError(f"{list(shape)} instead of [1, 1]")
        return elements[0].decode("ascii")
    except (ValueError, struct.error) as error:
        message = f"model {MODEL!r}, output {LABELS_IDENTITY!r}: {error}. Is this a Diptych repository?"
        raise ServerFault(message, request_id) from None


def unpack_bytes(data: bytes) -> tuple[bytes, ...]:
    """The elements of a BYTES tensor. Raises struct.error if the data ends too early."""
    elements = []
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        (element,) = struct.unpack_from(f"{length}s", data, start + 4)
        elements.append(element)
        start += 4 + length
    return tuple(elements)


class Scored(NamedTuple):
    """One label and its probability."""

    label: str
    score: float


@dataclasses.dataclass(frozen=True)
class Timings:
    """The parts of a call's time, in milliseconds.

    total_ms      from the call to the answer
    encode_ms     reading, shrinking and encoding the image
    waiting_ms    from sending to the reply, in the successful attempt; the rest of the total is failed
                  attempts, pauses, and the request for labels
    num_attempts  1: answered at once
    """

    total_ms: float = 0.0
    encode_ms: float = 0.0
    waiting_ms: float = 0.0
    num_attempts: int = 1


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The answers to each modality alone, and which modality decided.

    image_only  the answer without the text; None for an item without an image
    text_only   the answer without the image; None for an item without a text
    decided_by  'image' or 'text': only that one gives the same label alone, or the other is absent;
                'either': each alone gives the same label; 'together': neither does
    """

    image_only: Answer | None
    text_only: Answer | None
    decided_by: Literal["image", "text", "either", "together"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One item, classified.

    label          the most probable label; None if its probability is below the call's `min_score`
    score          the highest probability
    probabilities  of every label, in the order of the model's labels.txt; they sum to 1
    request_id     the request's id in the server's logs and traces
    model_version  of the ensemble that answered
    timings        the parts of the call's time
    explanation    with `explain=True`, else None
    """

    label: str | None
    score: float
    probabilities: dict[str, float]
    request_id: str = ""
    model_version: str = ""
    timings: Timings = Timings()
    explanation: Explanation | None = None

    @classmethod
    def of(
        cls,
        probabilities: Mapping[str, float],
        *,
        min_score: float = 0.0,
        request_id: str = "",
        model_version: str = "",
        timings: Timings = Timings(),
        explanation: Explanation | None = None,
    ) -> Answer:
        """The answer with these probabilities: `Answer.of({"food": 0.9, "tools": 0.1})`."""
        label = max(probabilities, key=probabilities.__getitem__)
        score = probabilities[label]
        shown = label if score >= min_score else None
        return cls(shown, score, dict(probabilities), request_id, model_version, timings, explanation)

    def top(self, k: int) -> tuple[Scored, ...]:
        """The k most probable labels, the best first; all labels if there are fewer than k."""
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return tuple(Scored(*item) for item in ranked[: max(k, 0)])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one item of `classify_many`: an answer or an error.

    index   of the item, counted from 0
    answer  None if there is an error
    error   None if there is an answer
    """

    index: int
    answer: Answer | None = None
    error: DiptychError | None = None


@dataclasses.dataclass(frozen=True)
class Labels:
    """The label names of one labels.txt, in order."""

    identity: str
    names: tuple[str, ...]


def read_answer(reply: Reply, labels: Labels, min_score: float, timings: Timings) -> Answer:
    """Raises ServerFault if the reply is not a row of probabilities, one for each label."""
    assert reply.labels_identity == labels.identity
    values = reply.floats()
    if len(values) != len(labels.names):
        raise reply.fault(f"{len(values)} probabilities for {len(labels.names)} labels")
    if not all(math.isfinite(value) for value in values):
        raise reply.fault("probabilities that are not numbers")
    return Answer.of(
        dict(zip(labels.names, values, strict=True)),
        min_score=min_score,
        request_id=reply.request_id,
        model_version=reply.model_version,
        timings=timings,
    )


def read_labels(reply: Reply) -> Labels:
    """The labels in the model's order, from Triton's `score:index:label` strings, which are sorted by score.

    The scores in these strings have only six decimals, so they are not used: probabilities come as FP32.
    """
    names: dict[int, str] = {}
    for element in reply.strings():
        fields = element.decode("utf-8", "replace").split(":", 2)
        if len(fields) != 3 or not fields[1].isdigit():
            raise reply.fault(f"{element!r}, which names no label (label_filename is missing)")
        names[int(fields[1])] = fields[2]
    if sorted(names) != list(range(reply.shape[1])) or len(set(names.values())) != len(names):
        raise reply.fault(f"labels that are not unique: {sorted(names.items())}")
    return Labels(reply.labels_identity, tuple(names[index] for index in range(len(names))))


def explain(answer: Answer, image_only: Answer | None, text_only: Answer | None) -> Answer:
    """The answer to the whole item, with an explanation from the answers to its parts."""
    label = answer.top(1)[0].label
    image_agrees, text_agrees = (
        alone is not None and alone.top(1)[0].label == label for alone in (image_only, text_only)
    )
    decided_by: Literal["image", "text", "either", "together"] = "together"
    if image_agrees:
        decided_by = "either" if text_agrees else "image"
    elif text_agrees:
        decided_by = "text"
    return dataclasses.replace(answer, explanation=Explanation(image_only, text_only, decided_by))
