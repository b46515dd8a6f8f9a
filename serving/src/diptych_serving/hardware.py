"""The CPU of this machine: cores and instructions."""

from __future__ import annotations

import math
import os
from pathlib import Path

# As /proc/cpuinfo names them: x86 (either suffices), and Arm.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# The file with a container's CPU limit: microseconds of CPU time ("max": no limit) and the period.
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    return not BF16_FLAGS.isdisjoint(_cpu_flags())


def num_cores() -> int:
    """CPU cores that this process may use: its affinity, or fewer if its container has a limit."""
    cores = len(os.sched_getaffinity(0))
    try:
        limit, period = CPU_LIMIT.read_text("ascii").split()
    except (OSError, ValueError):  # no cgroup of version 2
        return cores
    return cores if limit == "max" else max(1, min(cores, math.ceil(int(limit) / int(period))))


def _cpu_flags() -> set[str]:
    """Of the first processor; empty if the system has no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    lines = path.read_text("utf-8").splitlines()
    line = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(line.partition(":")[2].split())
