"""What this machine computes with, and whether a repository was made for it."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from diptych.errors import UserError
from diptych.release.repository import ENSEMBLE, MANIFEST_FILE, config_of, serving_version
from diptych.serving.gpu import NoGpu, find_gpus, has_gpu

# As /proc/cpuinfo names them: x86 (either suffices), and Arm.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
INSTANCES = re.compile(r"^instance_group \[ \{ count: (\d+)", re.MULTILINE)
# What a container's CPU limit is written to: microseconds of CPU time, "max" for no limit, in each period.
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    return not BF16_FLAGS.isdisjoint(_cpu_flags())


def num_cores() -> int:
    """CPU cores that this process may use: those it may run on, or fewer where its container has a limit."""
    cores = len(os.sched_getaffinity(0))
    try:
        limit, period = CPU_LIMIT.read_text("ascii").split()
    except (OSError, ValueError):  # no cgroup of version 2
        return cores
    return cores if limit == "max" else max(1, min(cores, math.ceil(int(limit) / int(period))))


def belongs_on_gpu(repository: Path) -> bool:
    """Whether it was exported for GPUs."""
    return _manifest(repository).get("target") == "gpu"


def require_hardware(repository: Path) -> None:
    """Refuse a repository for a GPU that is not here, or whose 16-bit graphs this machine would emulate, many
    times slower than fp32.

    A tritonserver that is started without this command loads them all the same: right answers, late.
    """
    if belongs_on_gpu(repository):
        _require_gpu(f"{repository}: was exported for GPUs")
    for encoder, numbers in _manifest(repository).get("precision", {}).items():
        if numbers == "bf16" and not has_bf16_instructions() and not has_gpu():
            _refuse(repository, encoder, "bf16, and this machine's CPU has no bf16 instructions")
        if numbers == "fp16":
            try:
                find_gpus()
            except NoGpu as error:
                _refuse(repository, encoder, f"fp16, and this machine has no NVIDIA GPU to use: {error}")


def require_target(repository: Path, *, must_have_gpu: bool) -> None:
    """Refuse a repository that was exported for the other kind of device. Raises UserError.

    One for CPUs has an image encoder for each core, each of which a GPU would get, and batches of four. On a
    developer's own machine that is a matter of speed; a container has the device that somebody chose for it.
    must_have_gpu  also where the repository does not say what it was exported for
    """
    is_for_cpus = _manifest(repository).get("target") == "cpu"
    if is_for_cpus and (must_have_gpu or has_gpu()):
        cause = "--gpu required was given" if must_have_gpu else "there is a GPU here"
        raise UserError(
            f"{repository}: was exported for CPUs, and {cause}. Export for GPUs into a new directory: "
            "diptych export RUN --target gpu --to DIRECTORY. Or serve on the CPU: start the container "
            "without a GPU and without --gpu required."
        )
    if must_have_gpu:
        _require_gpu("--gpu required")
    require_hardware(repository)


def _require_gpu(cause: str) -> None:
    try:
        find_gpus()
    except NoGpu as error:
        raise UserError(f"{cause}, and there is none to use: {error}") from None


def describe_excess(repository: Path) -> str | None:
    """Where a CPU step has more instances than this machine has cores; None where none has.

    The number is from `diptych export`, which knows the cores of its own machine alone.
    """
    cores = num_cores()
    steps = (
        ("preprocess",) if _manifest(repository).get("target") == "gpu" else ("preprocess", "image_encoder")
    )
    for step in steps:
        found = INSTANCES.search(config_of(repository, step).read_text("utf-8"))
        if found and int(found[1]) > cores:
            return (
                f"{repository}: {step} has {found[1]} instances, and there are {cores} cores here. They will "
                f"wait for each other, and each takes memory. Export for this machine: --cores {cores}"
            )
    return None


def _refuse(repository: Path, encoder: str, reason: str) -> None:
    raise UserError(
        f"{repository}: {encoder} computes in {reason}: it would run many times slower than fp32. "
        "Export for this machine: diptych export RUN --precision fp32 --to DIRECTORY"
    )


def _manifest(repository: Path) -> dict[str, Any]:
    """Of the version that the ensemble pins; empty where there is none."""
    path = repository / ENSEMBLE / str(serving_version(repository)) / MANIFEST_FILE
    if not path.is_file():
        return {}
    manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return manifest


def _cpu_flags() -> set[str]:
    """The first processor's; empty where the system has no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    lines = path.read_text("utf-8").splitlines()
    line = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(line.partition(":")[2].split())
