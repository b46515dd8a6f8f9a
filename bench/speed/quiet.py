"""How much of the machine other processes use: a busy machine is measured, not the server."""

from __future__ import annotations

import os
import time

import psutil

from diptych_serving.errors import UserError
from diptych_serving.progress import warn

SAMPLE_S = 1.0
LIMIT_CORES = 0.1


def others_load() -> float:
    """Cores that processes other than this one and its children were using, over a second."""
    mine = psutil.Process()
    before_s, begin_s = _busy_s() - _tree_s(mine), time.monotonic()
    time.sleep(SAMPLE_S)
    return max(0.0, (_busy_s() - _tree_s(mine) - before_s) / (time.monotonic() - begin_s))


def require_quiet(*, is_noise_accepted: bool) -> None:
    """Raises UserError if others are at work, or warns."""
    if (load := others_load()) <= LIMIT_CORES:
        return
    busiest = ", ".join(f"{name} ({pid})" for pid, name in _busiest())
    message = f"other processes use {load:.1f} cores: {busiest}"
    if not is_noise_accepted:
        raise UserError(f"{message}; end them, or accept marked results with --noisy-ok")
    warn(f"{message}; the results are marked as not quiet")


def _busy_s() -> float:
    times = psutil.cpu_times()
    idle_s: float = times.idle + times.iowait
    return sum(times) - times.guest - times.guest_nice - idle_s


def _tree_s(root: psutil.Process) -> float:
    """Also of children that have ended: the kernel adds them to their parents."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _busiest(num: int = 3) -> list[tuple[int, str]]:
    """The processes that use the most, over a second."""
    processes = [process for process in psutil.process_iter(["name"]) if process.pid != os.getpid()]
    for process in processes:
        _share(process)
    time.sleep(SAMPLE_S)
    shares = {process: _share(process) for process in processes}
    busiest = sorted(processes, key=lambda process: shares[process], reverse=True)[:num]
    return [(process.pid, process.info["name"]) for process in busiest]


def _share(process: psutil.Process) -> float:
    """Percent of a core since the last question; 0 at the first."""
    try:
        share: float = process.cpu_percent()
    except psutil.Error:
        return 0.0
    return share
