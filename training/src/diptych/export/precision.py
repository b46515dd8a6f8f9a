"""Which numbers each backbone computes in, and what runs it. The tensors between the steps stay fp32."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Literal, get_args

from diptych_serving.errors import UserError
from diptych_serving.hardware import has_bf16_instructions

Target = Literal["cpu", "gpu"]
Numbers = Literal["fp32", "bf16", "fp16", "int8"]
Request = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Runtime = Literal["torchscript", "openvino"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """image, text  what the backbone of each encoder computes in
    note         why it is not what was asked for, or empty
    """

    image: Numbers
    text: Numbers
    note: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether the exported model is to equal the eager one in every probability."""
        return self.image == self.text == "fp32"

    def __str__(self) -> str:
        return self.image if self.image == self.text else f"{self.image} image, {self.text} text"


FP32 = Precision(image="fp32", text="fp32")


def choose_precision(request: str, target: str) -> Precision:
    """What a request comes to on this machine.

    auto   fp16 for GPUs; for CPUs bf16 where this one has the instructions, else fp32
    bf16, fp16  both backbones; on a CPU that would have to emulate it, fp32 instead, with a note
    int8   the text backbone's matrices, the image backbone as under auto; CPUs only. It moves answers more
           than 16 bits do, so that auto never takes it
    """
    if request not in get_args(Request):
        raise UserError(f"--precision {request}: expected one of {', '.join(get_args(Request))}")
    if parse_target(target) == "gpu":
        if request == "int8":
            raise UserError("--precision int8: PyTorch's quantised layers run on CPUs only; use --target cpu")
        return _both("fp16" if request == "auto" else request)
    best: Numbers = "bf16" if has_bf16_instructions() else "fp32"
    if request == "int8":
        return Precision(image=best, text="int8")
    if request == "fp16":
        return dataclasses.replace(_both(best), note=f"fp16 is for GPUs; {best} instead")
    if request == "bf16" and best == "fp32":
        note = "this CPU has no bf16 instructions and would emulate them many times slower; fp32 instead"
        return dataclasses.replace(FP32, note=note)
    return _both(best if request == "auto" else request)


def choose_runtime(request: str, target: str, precision: Precision) -> Runtime:
    """What the Python-based backend runs the graphs with.

    auto  OpenVINO on CPUs where it is installed and computes in these numbers, else TorchScript
    """
    if request not in ("auto", *get_args(Runtime)):
        raise UserError(f"--runtime {request}: expected one of auto, {', '.join(get_args(Runtime))}")
    fits = parse_target(target) == "cpu" and {precision.image, precision.text} <= {"fp32", "bf16"}
    is_installed = importlib.util.find_spec("openvino") is not None
    if request == "openvino" and not fits:
        raise UserError("--runtime openvino: is for --target cpu in fp32 or bf16; use --runtime torchscript")
    if request == "openvino" and not is_installed:
        raise UserError("--runtime openvino: not installed; pip install 'diptych-serving[openvino]'")
    return "openvino" if request != "torchscript" and fits and is_installed else "torchscript"


def parse_target(target: str) -> Target:
    """The kind of device that a name means. Raises UserError."""
    for known in get_args(Target):
        if target == known:
            return known
    raise UserError(f"--target {target}: expected one of {', '.join(get_args(Target))}")


def _both(numbers: str) -> Precision:
    return Precision(image=numbers, text=numbers)  # type: ignore[arg-type]
