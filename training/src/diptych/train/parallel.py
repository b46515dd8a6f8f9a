"""Communication between training processes, which `accelerate launch` or `torchrun` starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from diptych.config.sections import MixedPrecision
from diptych_serving.errors import UserError

T = TypeVar("T")


def start_accelerator(precision: MixedPrecision) -> Accelerator:
    """Join the other processes, if there are any, and find the device."""
    # The accelerator is a singleton with one precision, but a process may train several runs.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"fp32": "no"}.get(name := choose_mixed_precision(precision), name),
        # A batch without any image, or any text, leaves an encoder unused.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return bool(PartialState().is_main_process)


def choose_mixed_precision(precision: MixedPrecision) -> Literal["fp32", "bf16", "fp16"]:
    """'auto' is 16-bit on GPUs and fp32 on CPUs.

    On CPUs training in bf16 was slower: 1.7 times the time of fp32 on two shared cores with avx512_bf16
    (EfficientNet-Lite0 with MiniLM-L6, batches of 32, torch 2.12.1; one run).
    """
    if precision != "auto":
        return precision
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Run `make` in the main process only; all get its result, or raise its UserError."""
    outcome: list[T | UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            outcome[0] = make()
        except UserError as error:
            if accelerator.num_processes == 1:
                raise
            outcome[0] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]


def gather_interleaved(accelerator: Accelerator, mine: Tensor) -> Tensor:
    """All rows of (N, ...) in order; process r holds rows r, r + P, r + 2P, ..."""
    if accelerator.num_processes == 1:
        return mine
    parts: list[Tensor] = gather_object([mine.cpu()])
    rows = torch.empty(sum(map(len, parts)), *mine.shape[1:], dtype=mine.dtype)
    for rank, part in enumerate(parts):
        rows[rank :: accelerator.num_processes] = part
    return rows
