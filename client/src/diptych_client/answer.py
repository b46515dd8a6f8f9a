"""What a call returns, and how it is read from a reply."""

from __future__ import annotations

import dataclasses
import math

from diptych_client.contract import Reply


@dataclasses.dataclass(frozen=True)
class Answer:
    """One item, classified.

    label          the most probable label
    score          its probability
    probabilities  of every label, in the order of the model's labels.txt; they sum to 1
    request_id     what the server's logs and traces call this request
    model_version  of the ensemble that answered
    """

    label: str
    score: float
    probabilities: dict[str, float]
    request_id: str
    model_version: str


@dataclasses.dataclass(frozen=True)
class Labels:
    """The label names of one version of the ensemble, in order."""

    model_version: str
    names: tuple[str, ...]


def read_answer(reply: Reply, labels: Labels) -> Answer:
    """Raises ServerFault where the reply is not a row of probabilities, one for each label."""
    values = reply.floats()
    if len(values) != len(labels.names):
        raise reply.fault(f"{len(values)} probabilities for {len(labels.names)} labels")
    if not all(math.isfinite(value) for value in values):
        raise reply.fault("probabilities that are not numbers")
    probabilities = dict(zip(labels.names, values))  # noqa: B905  (Python 3.9 has no `strict`)
    label = max(probabilities, key=probabilities.__getitem__)
    return Answer(label, probabilities[label], probabilities, reply.request_id, reply.model_version)


def read_labels(reply: Reply) -> Labels:
    """Order what Triton's classification extension sorts by score: `score:index:label` strings.

    The scores in these strings have six decimals, so they are not used: probabilities come as FP32.
    """
    names: dict[int, str] = {}
    for element in reply.strings():
        fields = element.decode("utf-8", "replace").split(":", 2)
        if len(fields) != 3 or not fields[1].isdigit():
            raise reply.fault(f"{element!r}, which names no label (label_filename is missing)")
        names[int(fields[1])] = fields[2]
    if sorted(names) != list(range(reply.shape[1])) or len(set(names.values())) != len(names):
        raise reply.fault(f"labels that are not unique: {sorted(names.items())}")
    return Labels(reply.model_version, tuple(names[index] for index in range(len(names))))
