"""Triton's last step: counts the answers by label, and passes them on beside the identity of their labels.

`diptych export` copies this file into each version directory, beside metering.py and that version's
labels.txt. It knows Triton and the names of the labels; what it counts ends in metrics, which hold labels and
numbers and nothing of a caller's.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

PREDICTIONS, CONFIDENCE = "diptych_predictions_total", "diptych_prediction_confidence_total"
IDENTITY_DIGITS = 16


class TritonPythonModel:
    """One instance, one process; Triton calls `initialize` once, then `execute` with one batch at a time."""

    def initialize(self, args):
        directory = Path(args["model_repository"]) / args["model_version"]
        labels = (directory / "labels.txt").read_bytes()
        self._labels = split_labels(labels)
        self._identity = hashlib.sha256(labels).hexdigest()[:IDENTITY_DIGITS].encode()
        metering = import_file(directory / "metering.py")
        families = [
            metering.Family(PREDICTIONS, "Answers by their most probable label.", "label", self._labels),
            metering.Family(CONFIDENCE, "Sum of the probability of that label.", "label", self._labels),
        ]
        self._meter = metering.Meter(pb_utils, args, families)

    def execute(self, requests):
        """Answer every request with what came in; counting cannot fail it."""
        return [self._pass_on(request) for request in requests]

    def finalize(self):
        self._meter.stop()

    def _pass_on(self, request):
        probabilities = pb_utils.get_input_tensor_by_name(request, "fused_probabilities").as_numpy()
        self._meter.count(count_answers, probabilities, self._labels)
        identities = np.full((len(probabilities), 1), self._identity, dtype=np.object_)
        tensors = {"probabilities": probabilities, "labels_sha256": identities}
        return pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in tensors.items()])


def split_labels(content):
    """One a line. Only a line feed ends a line: str.splitlines knows nine other characters."""
    return content.decode("utf-8").removesuffix("\n").split("\n")


def count_answers(probabilities, labels):
    """What to add for a request's rows (B, C) float32. Rows of zeros are the warm-up's."""
    for row in probabilities:
        best = int(row.argmax())
        if row[best] > 0:
            yield PREDICTIONS, labels[best], 1
            yield CONFIDENCE, labels[best], float(row[best])


def import_file(path):
    """Import one version's snapshot. Each instance is a process of its own: versions cannot mix."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
