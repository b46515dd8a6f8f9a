"""What a call returns, and how it is read from a reply."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Optional

from diptych_client.contract import Reply


class Scored(NamedTuple):
    """One label and its probability."""

    label: str
    score: float


@dataclasses.dataclass(frozen=True)
class Timings:
    """Where a call's time went, in milliseconds.

    total_ms      from the call to the answer
    encode_ms     making bytes of what the caller holds: reading, shrinking, encoding
    waiting_ms    from sending to the reply, in the attempt that was answered; the rest of the total went
                  into failed attempts, pauses between them, and asking for the labels
    num_attempts  1: answered at once
    """

    total_ms: float
    encode_ms: float
    waiting_ms: float
    num_attempts: int


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What each modality alone would say, and which of them decided.

    picture_only  the answer without the words; None where there is no picture
    words_only    the answer without the picture; None where there are no words
    decided_by    'picture' or 'words': that one alone says the same, and the other does not, or is not there;
                  'either': each alone says the same; 'together': neither does
    """

    picture_only: Optional[Answer]
    words_only: Optional[Answer]
    decided_by: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """One item, classified.

    label          the most probable label; None where its probability is below the `min_score` of the call
    score          the highest probability
    probabilities  of every label, in the order of the model's labels.txt; they sum to 1
    request_id     what the server's logs and traces call this request
    model_version  of the ensemble that answered
    timings        where the time went
    explanation    where it was asked for with `explain=True`
    """

    label: Optional[str]
    score: float
    probabilities: dict[str, float]
    request_id: str
    model_version: str
    timings: Timings
    explanation: Optional[Explanation] = None

    def top(self, k: int) -> tuple[Scored, ...]:
        """The k most probable labels, the first first; all of them where there are fewer than k."""
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return tuple(Scored(*item) for item in ranked[: max(k, 0)])


@dataclasses.dataclass(frozen=True)
class Labels:
    """The label names of one version of the ensemble, in order."""

    model_version: str
    names: tuple[str, ...]


def read_answer(reply: Reply, labels: Labels, min_score: float, timings: Timings) -> Answer:
    """Raises ServerFault where the reply is not a row of probabilities, one for each label."""
    values = reply.floats()
    if len(values) != len(labels.names):
        raise reply.fault(f"{len(values)} probabilities for {len(labels.names)} labels")
    if not all(math.isfinite(value) for value in values):
        raise reply.fault("probabilities that are not numbers")
    probabilities = dict(zip(labels.names, values))  # noqa: B905  (Python 3.9 has no `strict`)
    label = max(probabilities, key=probabilities.__getitem__)
    score = probabilities[label]
    shown = label if score >= min_score else None
    return Answer(shown, score, probabilities, reply.request_id, reply.model_version, timings)


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


def explain(answer: Answer, picture_only: Optional[Answer], words_only: Optional[Answer]) -> Answer:
    """The answer to all that the item has, with the explanation that the answers to its parts give."""
    agrees = {
        name: alone is not None and alone.top(1)[0].label == answer.top(1)[0].label
        for name, alone in (("picture", picture_only), ("words", words_only))
    }
    agreeing = [name for name, does in agrees.items() if does]
    decided_by = {0: "together", 1: "".join(agreeing), 2: "either"}[len(agreeing)]
    return dataclasses.replace(answer, explanation=Explanation(picture_only, words_only, decided_by))
