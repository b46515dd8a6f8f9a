"""What this machine computes in without emulation, and whether a repository asks for more."""

from __future__ import annotations

import json
import os
from pathlib import Path

from diptych.errors import UserError
from diptych.release.repository import ENSEMBLE, MANIFEST_FILE, serving_version

# As /proc/cpuinfo names them: x86 (either suffices), and Arm.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
GPU_DEVICE = Path("/dev/nvidiactl")


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    return not BF16_FLAGS.isdisjoint(_cpu_flags())


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there."""
    return GPU_DEVICE.exists()


def require_hardware(repository: Path) -> None:
    """Refuse a repository whose 16-bit graphs this machine would emulate, many times slower than fp32.

    A tritonserver that is started without this command loads them all the same: right answers, late.
    """
    for encoder, numbers in _precision(repository).items():
        if numbers == "bf16" and not has_bf16_instructions() and not has_gpu():
            _refuse(repository, encoder, "bf16, and this machine's CPU has no bf16 instructions")
        if numbers == "fp16" and not has_gpu():
            _refuse(repository, encoder, "fp16, and this machine has no NVIDIA GPU")


def _refuse(repository: Path, encoder: str, reason: str) -> None:
    raise UserError(
        f"{repository}: {encoder} computes in {reason}: it would run many times slower than fp32. "
        "Export for this machine: diptych export RUN --precision fp32 --to DIRECTORY"
    )


def _precision(repository: Path) -> dict[str, str]:
    """By encoder, of the version that the ensemble pins; empty where no manifest says."""
    path = repository / ENSEMBLE / str(serving_version(repository)) / MANIFEST_FILE
    if not path.is_file():
        return {}
    precision: dict[str, str] = json.loads(path.read_text("utf-8")).get("precision", {})
    return precision


def _cpu_flags() -> set[str]:
    """The first processor's; empty where the system has no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    lines = path.read_text("utf-8").splitlines()
    line = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(line.partition(":")[2].split())
