"""Measures every two seconds what could leak: in the server with all its processes, and in its callers."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Sequence

import numpy as np
import psutil

from bench.served import ServedProcess
from diptych_serving.server import leftovers

SAMPLE_S = 2.0


@dataclasses.dataclass(frozen=True)
class Sample:
    """`serve_*` is the supervisor alone, which outlives every tritonserver; `caller_*` this process."""

    seconds: float
    memory_mib: float
    file_descriptors: int
    threads: int
    processes: int
    shared_memory_mib: float
    serve_file_descriptors: int
    serve_threads: int
    serve_memory_mib: float
    caller_file_descriptors: int
    caller_threads: int
    caller_memory_mib: float


class Gauges:
    """A context manager: inside the `with`, a thread fills `samples`."""

    def __init__(self, served: ServedProcess, began_s: float) -> None:
        self.samples: list[Sample] = []
        self._served, self._began_s = served, began_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Gauges:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(SAMPLE_S):
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # between two starts
                self.samples.append(self._sample())

    def _sample(self) -> Sample:
        serve, caller = psutil.Process(self._served.process.pid), psutil.Process()
        tree = [serve]
        for child in serve.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    tree.append(child)
        memory, descriptors, threads = 0.0, 0, 0
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                memory += process.memory_full_info().pss / 2**20
                descriptors += process.num_fds()
                threads += process.num_threads()
        regions = [path.stat() for path in leftovers.SHARED_MEMORY.glob(f"{self._served.prefix}*")]
        return Sample(
            time.monotonic() - self._began_s,
            memory,
            descriptors,
            threads,
            len(tree),
            sum(region.st_blocks for region in regions) * 512 / 2**20,
            serve.num_fds(),
            serve.num_threads(),
            serve.memory_full_info().pss / 2**20,
            caller.num_fds(),
            caller.num_threads(),
            caller.memory_full_info().pss / 2**20,
        )


@dataclasses.dataclass(frozen=True)
class Growth:
    """Of one gauge, from the median of the first quarter of a time to that of its last quarter."""

    gauge: str
    before: float
    after: float
    allowed: float

    @property
    def is_leak(self) -> bool:
        return self.after - self.before > self.allowed


# What may come without being a leak: allocators keep pages, callers open a connection more.
ALLOWED = {
    "memory_mib": 0.05,
    "file_descriptors": 0.10,
    "threads": 0.05,
    "processes": 0.0,
    "shared_memory_mib": 0.25,
    "serve_file_descriptors": 0.0,
    "serve_threads": 0.0,
    "serve_memory_mib": 0.10,
    "caller_file_descriptors": 0.25,
    "caller_threads": 0.10,
    "caller_memory_mib": 0.10,
}


# In less, quarters hold different faults rather than different times.
MIN_JUDGED_S = 120.0


def growths(samples: Sequence[Sample], from_s: float) -> list[Growth]:
    """Of every gauge since a time at which the server that runs at the end had started."""
    late = [sample for sample in samples if sample.seconds >= from_s]
    if not late or late[-1].seconds - late[0].seconds < MIN_JUDGED_S:
        return []
    quarter = len(late) // 4
    found = []
    for gauge, share in ALLOWED.items():
        before, after = (
            float(np.median([getattr(sample, gauge) for sample in part]))
            for part in (late[:quarter], late[-quarter:])
        )
        found.append(Growth(gauge, before, after, share * before))
    return found
