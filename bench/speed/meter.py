"""CPU time and memory of a process and its children."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil


class Meter:
    """Asks the kernel; touches the processes only to put them to sleep between rounds."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def cpu_s(self) -> float:
        """User and system time of those alive."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_mib(self) -> float:
        """Proportional set size: shared pages count once."""
        total = 0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 2**20

    def suspend(self) -> None:
        """Others are measured meanwhile, and polling costs."""
        for process in self._tree():
            process.suspend()

    def resume(self) -> None:
        for process in self._tree():
            process.resume()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Resumed inside, suspended after."""
        self.resume()
        time.sleep(0.2)
        try:
            yield
        finally:
            self.suspend()

    def end(self) -> None:
        """Kill them all and wait."""
        processes = self._tree()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def _tree(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]
