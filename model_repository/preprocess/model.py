"""Triton's preprocess step, a shell: unpack the requests, call `preprocessing`, pack the answers.

`diptych export` copies this file into each version directory, beside those that belong to that version:
preprocessing.py, image_files.py, preprocessing.json, tokenizer.json and metering.py. It knows Triton and
nothing about images or text. What it counts ends in metrics, which hold kinds of inputs and numbers and
nothing of a caller's.
"""

import importlib
import os
import sys
import types
from pathlib import Path

import triton_python_backend_utils as pb_utils

OUTPUTS = ("pixel_values", "image_present", "input_ids", "attention_mask")
ROWS, ABSENT = "diptych_inputs_total", "diptych_absent_inputs_total"
REJECTED, FAILED = "diptych_rejected_inputs_total", "diptych_preprocess_failures_total"
REJECTED_REQUESTS = "diptych_rejected_requests_total"
PIXELS, TOKENS = "diptych_decoded_pixels_total", "diptych_tokens_total"
# Gives way to the later steps where they share its cores: what is begun is finished first, and what is too
# much waits here, or is refused, before any work is done.
NICENESS = 10
PACKAGE = "diptych_snapshot"


class TritonPythonModel:
    """One instance, one process; Triton calls `initialize` once, then `execute` with one batch at a time."""

    def initialize(self, args):
        os.nice(NICENESS)
        directory = Path(args["model_repository"]) / args["model_version"]
        self._preprocessing = import_snapshot(directory, "preprocessing")
        self._preprocessor = self._preprocessing.Preprocessor.load(directory)
        metering = import_snapshot(directory, "metering")
        families = [
            metering.Family(ROWS, "Items that arrived, whatever became of them."),
            metering.Family(REJECTED, "Items refused, by reason.", "reason", self._preprocessing.REASONS),
            metering.Family(REJECTED_REQUESTS, "Requests that hold a refused item."),
            metering.Family(FAILED, "Requests that failed by a fault of the preprocessor."),
            metering.Family(
                ABSENT, "Accepted items that lack their image or text.", "modality", ("image", "text")
            ),
            metering.Family(PIXELS, "Pixels that the decoders gave, before scaling."),
            metering.Family(TOKENS, "Tokens of accepted items, without padding."),
        ]
        self._meter = metering.Meter(pb_utils, args, families, watches_memory=True)

    def execute(self, requests):
        """Answer every request; never raise, for that would fail the whole batch and show a traceback."""
        try:
            return self._answer(requests)
        except Exception as error:
            if len(requests) > 1:  # find the culprit, spare the others
                return [self.execute([request])[0] for request in requests]
            pb_utils.Logger.log_error(f"preprocess: {type(error).__name__}: {error}")
            message = "preprocess: an internal error; the server's log has it"
            self._meter.count(lambda: [(FAILED, "", 1)])
            return [failure(message, pb_utils.TritonError.INTERNAL)]

    def finalize(self):
        self._meter.stop()

    def _answer(self, requests):
        """Preprocess the rows of all requests into one batch, then hand each request its slice of it."""
        unpacked = [unpack(request) for request in requests]
        batch = self._preprocessor.batch([row for rows in unpacked for row in rows])
        self._meter.count(count_inputs, batch)
        answers, start = [], 0
        for rows in unpacked:
            answers.append(pack(batch, start, start + len(rows)))
            start += len(rows)
        self._meter.count(lambda: [(REJECTED_REQUESTS, "", sum(answer.has_error() for answer in answers))])
        return answers


def count_inputs(batch):
    """What to add for a batch's rows."""
    has_image, has_text = batch.image_present[:, 0], batch.attention_mask.any(axis=1)
    accepted = [row for row in range(len(has_image)) if row not in batch.errors]
    yield ROWS, "", len(has_image)
    yield PIXELS, "", int(batch.decoded_pixels.sum())
    yield TOKENS, "", int(batch.attention_mask[accepted].sum())
    yield ABSENT, "image", int((~has_image[accepted]).sum())
    yield ABSENT, "text", int((~has_text[accepted]).sum())
    for error in batch.errors.values():
        yield REJECTED, error.reason, 1


def pack(batch, start, end):
    """The answer to the request whose rows these are: their tensors, or the error of the first bad one."""
    for row in range(start, end):
        if row in batch.errors:
            where = f"row {row - start + 1} of {end - start}: " if end - start > 1 else ""
            message = str(batch.errors[row]).replace("preprocess: ", f"preprocess: {where}", 1)
            return failure(message, pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, getattr(batch, name)[start:end]) for name in OUTPUTS]
    )


def unpack(request):
    """One request's rows as (image bytes, text bytes) pairs; an absent input is an empty one."""
    tensors = {tensor.name(): tensor.as_numpy().reshape(-1) for tensor in request.inputs()}
    num_rows = max((len(column) for column in tensors.values()), default=1)
    absent = [b""] * num_rows
    return list(zip(tensors.get("image", absent), tensors.get("text", absent), strict=True))


def failure(message, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def import_snapshot(directory, name):
    """Import a file of this version. Each instance is a process of its own: versions cannot mix."""
    if PACKAGE not in sys.modules:  # files of one package import one another
        sys.modules[PACKAGE] = types.ModuleType(PACKAGE)
        sys.modules[PACKAGE].__path__ = [str(directory)]
    return importlib.import_module(f"{PACKAGE}.{name}")
