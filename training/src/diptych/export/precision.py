"""Which numbers each backbone computes in. What surrounds the backbones stays fp32, and so do the borders."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from diptych_serving.errors import UserError
from diptych_serving.hardware import has_bf16_instructions

Target = Literal["cpu", "gpu"]
Numbers = Literal["fp32", "bf16", "fp16", "int8"]
Request = Literal["auto", "fp32", "bf16", "fp16", "int8"]


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
           than 16 bits do (parity.py has the limits), so that auto never takes it
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


def parse_target(target: str) -> Target:
    """The kind of device that a name means. Raises UserError."""
    for known in get_args(Target):
        if target == known:
            return known
    raise UserError(f"--target {target}: expected one of {', '.join(get_args(Target))}")


def _both(numbers: str) -> Precision:
    return Precision(image=numbers, text=numbers)  # type: ignore[arg-type]
