"""Several versions of one run, whose answers differ, and what each of them answers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from diptych.data.catalogue import read_split
from diptych.export.export import export
from diptych.runs.run import Run
from diptych_serving.release.in_process import ask_files
from diptych_serving.repository.layout import read_manifest
from diptych_serving.traffic import Call, Item

Probabilities = Mapping[str, float]

NUM_ITEMS = 24
# Added to the first label's logit, times the version: the versions then differ in every answer.
SHIFT = 0.2


def export_versions(run: Run, repository: Path, num_versions: int) -> Path:
    """As many versions of the run, which differ in every answer; the first serves."""
    for version in range(1, num_versions + 1):
        model = copy.deepcopy(run.model)
        model.fusion_head.classifier.bias.data[0] += SHIFT * version
        export(dataclasses.replace(run, model=model), repository)
    return repository


def read_items(run: Run) -> list[Item]:
    """Validation items: a third with image and text, a third with the image, a third with the text."""
    data = run.config.data
    items = read_split(data.val_csv, data, labels=run.labels, preprocessor=run.preprocessor)
    both = [(item.read_image(), item.text) for item in items if item.image and item.text]
    kinds = ((True, True), (True, False), (False, True))
    return [
        (image if kinds[index % 3][0] else b"", text if kinds[index % 3][1] else "")
        for index, (image, text) in enumerate(both[:NUM_ITEMS])
    ]


def expect(
    repository: Path, versions: Sequence[int], items: Sequence[Item]
) -> dict[int, list[Probabilities]]:
    """What each version answers to each item, by its own labels: computed in this process, from its files."""
    expected = {}
    for version in versions:
        labels, ask = read_manifest(repository, version)["labels"], ask_files(repository, version)
        expected[version] = [
            dict(zip(labels, ask(image, text.encode()).tolist(), strict=True)) for image, text in items
        ]
    return expected


def version_of(call: Call) -> int:
    """The one that an answer names."""
    return int(call.result.model_version)


def find_strays(
    answers: Sequence[Call], expected: Mapping[int, Sequence[Probabilities]], tolerance: float
) -> list[Call]:
    """Answers that are not what the version that they name says, in labels, their order and values."""
    return [
        call
        for call in answers
        if version_of(call) not in expected
        or not _agrees(call.result.probabilities, expected[version_of(call)][call.item], tolerance)
    ]


def _agrees(found: Probabilities, expected: Probabilities, tolerance: float) -> bool:
    return list(found) == list(expected) and all(
        abs(found[label] - expected[label]) <= tolerance for label in expected
    )
