"""Decides in which numbers, and by which runtime, a model is served; writes TorchScript files, or stops.

The fp32 graph must equal the eager model to rounding. Fewer bits move answers, so they are judged by what the
answers are worth on real items (judgement.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from torch import Tensor
from tritonclient.grpc.model_config_pb2 import ModelConfig

from diptych.data.dataset import to_inputs
from diptych.data.examples import Example
from diptych.export import parity
from diptych.export.judgement import Judgement, Limits, judge
from diptych.export.parity import Parity, expect, is_equal, measure_parity, require_parity
from diptych.export.precision import FP32, Precision, Runtime
from diptych.export.torchscript import CPU, eager_parts, run_parts, save_parts, to_torchscript
from diptych.runs.run import Run
from diptych_serving.cache import cache_directory
from diptych_serving.openvino_runtime import VERSION_FILE, OpenVinoGraph, Unavailable, load_graph
from diptych_serving.preprocessing import Row
from diptych_serving.progress import track
from diptych_serving.release.in_process import Parts, load_parts
from diptych_serving.repository.golden import MAX_DIFFERENCE_EXACT, MAX_DIFFERENCE_LEAN
from diptych_serving.repository.layout import (
    CONFIG_FILE,
    FUSION_HEAD,
    IMAGE_ENCODER,
    TEXT_ENCODER,
    TORCHSCRIPT_FILE,
)

# Enough rows for the matrices of a real batch, and few enough for a GPU's or an emulator's first run.
BATCH_SIZE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a model of fewer bits is judged by.

    examples  validation items that every form of the model is compared on
    rows      real items, with truth (N,) int64: the index of each one's label, -1 where it is not known
    """

    examples: Sequence[Example]
    rows: Sequence[Row]
    truth: NDArray[np.int64]
    limits: Limits = dataclasses.field(default_factory=Limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gated:
    """What was written, and how it compares with the eager model.

    files      the TorchScript files' modules
    parts      what the server will run: these, or the same graphs in OpenVINO
    runtime    which of the two
    precision  what `parts` compute in; with OpenVINO the files are fp32
    """

    files: Mapping[str, torch.jit.ScriptModule]
    parts: Parts
    runtime: Runtime
    precision: Precision
    parity: list[Parity]
    judgements: list[Judgement]

    @property
    def file_precision(self) -> Precision:
        """What the files compute in where they are run themselves."""
        return FP32 if self.runtime == "openvino" else self.precision

    @property
    def max_difference(self) -> float:
        """How far a server's answers may be from the files'. In fewer bits: half as much again as the largest
        difference of a real item, because another processor rounds otherwise.
        """
        if self.precision.is_exact:
            return MAX_DIFFERENCE_EXACT
        return max(MAX_DIFFERENCE_LEAN, round(1.5 * self.judgements[-1].max_difference, 3))


class Gate:
    """Compares forms of one run's model with the eager one."""

    def __init__(self, run: Run, evidence: Evidence, directories: Mapping[str, Path]) -> None:
        """directories  version directories by model; their parents hold the configs"""
        self._run, self._evidence, self._directories = run, evidence, directories
        self._eager = eager_parts(run.model.eval())
        self._rows = parity.sample_rows(evidence.examples, run.preprocessor)
        self._example, self._expected = to_inputs(self._rows["both"]), expect(self._eager, self._rows)
        self._answers: NDArray[np.float32] | None = None
        self.parity: list[Parity] = []
        self.judgements: list[Judgement] = []

    def write(self, precision: Precision, runtime: Runtime) -> Gated:
        """Write each part's model.pt, in the precision asked for or, with a note, in more bits.

        raises  UserError where the fp32 graph differs from the eager model
        """
        plain = to_torchscript(self._run.model, self._example)
        require_parity(self._measure("TorchScript", plain, FP32))
        parity.require_text_fidelity(self._run.model.text_encoder, plain[TEXT_ENCODER], self._rows)
        notes = [precision.note] if precision.note else []
        if runtime == "openvino" and (gated := self._in_openvino(plain, precision, notes)):
            return gated
        return self._in_torchscript(plain, precision, notes)

    def _in_openvino(
        self, plain: dict[str, torch.jit.ScriptModule], precision: Precision, notes: list[str]
    ) -> Gated | None:
        """The fp32 files, run by OpenVINO; None, with a note, where it does not take them."""
        save_parts(plain, self._directories)
        require_parity(self._measure("reloaded files", load_parts(self._directories), FP32))
        for candidate in [*_ladder(precision), FP32]:
            try:
                parts = openvino_parts(self._directories, candidate, torch.get_num_threads())
                if candidate.is_exact:
                    found = self._measure("OpenVINO", parts, candidate)
                    fault = "" if is_equal(found) else f"probabilities differ by {found.max_difference:.1e}"
                else:
                    fault = self._judge("OpenVINO", parts, candidate)
            except (Unavailable, RuntimeError) as error:
                notes.append(f"TorchScript instead of OpenVINO: {error}")
                return None
            if not fault:
                for model, numbers in _numbers(candidate).items():
                    content = json.dumps({"precision": numbers})
                    (self._directories[model] / VERSION_FILE).write_text(f"{content}\n", "utf-8")
                return self._gated(plain, parts, "openvino", candidate, notes)
            notes.append(f"OpenVINO in {candidate}: {fault}")
        return None

    def _in_torchscript(
        self, plain: dict[str, torch.jit.ScriptModule], precision: Precision, notes: list[str]
    ) -> Gated:
        is_for_gpu = "fp16" in (precision.image, precision.text) and torch.cuda.is_available()
        device = torch.device("cuda" if is_for_gpu else "cpu")
        for candidate in _ladder(precision):
            lean = to_torchscript(self._run.model, self._example, candidate)
            save_parts(lean, self._directories)
            fault = self._judge("TorchScript", load_parts(self._directories, device), candidate, device)
            if not fault:
                return self._gated(lean, lean, "torchscript", candidate, notes)
            notes.append(f"{candidate}: {fault}")
        if not precision.is_exact:
            notes.append("fp32 instead")
        save_parts(plain, self._directories)
        require_parity(self._measure("reloaded files", load_parts(self._directories), FP32))
        return self._gated(plain, plain, "torchscript", FP32, notes)

    def _gated(
        self,
        files: dict[str, torch.jit.ScriptModule],
        parts: Parts,
        runtime: Runtime,
        precision: Precision,
        notes: Sequence[str],
    ) -> Gated:
        return Gated(
            files=files,
            parts=parts,
            runtime=runtime,
            precision=dataclasses.replace(precision, note="; ".join(notes)),
            parity=self.parity,
            judgements=self.judgements,
        )

    def _measure(self, form: str, parts: Parts, precision: Precision) -> Parity:
        self.parity.append(measure_parity(form, parts, self._expected, precision))
        return self.parity[-1]

    def _judge(self, form: str, parts: Parts, precision: Precision, device: torch.device = CPU) -> str:
        """What speaks against it; empty: nothing."""
        if self._answers is None:
            self._answers = self._ask("the eager model", self._eager, CPU)
        found = self._ask(f"{form} in {precision}", parts, device)
        evidence = self._evidence
        self.judgements.append(
            judge(form, str(precision), self._answers, found, evidence.truth, evidence.limits)
        )
        return "; ".join(self.judgements[-1].faults)

    def _ask(self, name: str, parts: Parts, device: torch.device) -> NDArray[np.float32]:
        """(N, C) float32 probabilities of all real items."""
        rows = self._evidence.rows
        batches = [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
        answers = [
            run_parts(parts, to_inputs(batch), device)
            for batch in track(batches, f"Asking {name}", len(batches))
        ]
        return torch.cat(answers).numpy()


def _ladder(precision: Precision) -> list[Precision]:
    """What to try before fp32. Where both backbones in 16 bits lose answers, it is the image's that does."""
    if precision.is_exact:
        return []
    text_alone = Precision(image="fp32", text=precision.text)
    return [precision] if precision.image == "fp32" else [precision, text_alone]


def _numbers(precision: Precision) -> dict[str, str]:
    return {IMAGE_ENCODER: precision.image, TEXT_ENCODER: precision.text, FUSION_HEAD: "fp32"}


def openvino_parts(directories: Mapping[str, Path], precision: Precision, num_threads: int) -> Parts:
    """The files as the server will load them. Raises Unavailable."""
    graphs = {}
    for model, numbers in _numbers(precision).items():
        config = text_format.Parse(
            (directories[model].parent / CONFIG_FILE).read_text("utf-8"), ModelConfig()
        )
        inputs = json_format.MessageToDict(config, preserving_proto_field_name=True)["input"]
        graph = load_graph(
            directories[model] / TORCHSCRIPT_FILE,
            inputs,
            read_module=partial(torch.jit.load, map_location="cpu"),
            precision=numbers,
            num_threads=num_threads,
            cache=cache_directory("openvino"),
        )
        graphs[model] = _on_tensors(graph)
    return graphs


def _on_tensors(graph: OpenVinoGraph) -> Callable[..., Tensor]:
    def run(*tensors: Tensor) -> Tensor:
        return torch.from_numpy(graph(*(tensor.contiguous().numpy() for tensor in tensors))[0])

    return run
