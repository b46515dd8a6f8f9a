"""Counts the items that pass through a Python step of the server, and reports the sums to Triton's metrics.

A snapshot of this file lies in the version directories of the steps that count. It may import only the
standard library; `pb_utils` is passed to it. It must not know models or tensors.

Reporting a number to Triton costs a round trip between processes, about 60 microseconds. So requests only
add to numbers in memory, and a separate thread reports the sums. No request waits for a metric or fails
because of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PERIOD_S = 1.0
MEMORY_PERIOD_S = 15.0  # reads as many files as there are processes
# How long an instance may take to end; Triton allows 30 seconds.
STOP_TIMEOUT_S = 5.0
ALIVE = "diptych_step_alive_timestamp_seconds"
MEMORY = "diptych_server_memory_bytes"

# (name, value of its label, number)
Count = tuple[str, str, float]


@dataclasses.dataclass(frozen=True)
class Family:
    """A counter.

    label   the name of its only label beside `version`; empty: none
    values  all values of the label. The list is closed, so that no input of a caller becomes a series
    """

    name: str
    description: str
    label: str = ""
    values: Sequence[str] = ("",)


class Meter:
    """One for each instance, which is a process. Raises nothing, so that no request fails because of it.

    watches_memory  also report the memory of the whole server; only one step does
    """

    def __init__(
        self,
        pb_utils: Any,
        args: Mapping[str, str],
        families: Sequence[Family] = (),
        *,
        watches_memory: bool = False,
    ) -> None:
        self._pb_utils = pb_utils
        self._args = args
        self._families = families
        self._watches_memory = watches_memory
        self._pending: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._has_complained = False
        self._stopping, self._stopped = threading.Event(), threading.Event()
        threading.Thread(target=self._hand_over, daemon=True).start()

    def count(self, what: Callable[..., Iterable[Count]], *arguments: object) -> None:
        """Add what a function returns for a batch. An error in it loses the count, not the request."""
        try:
            counts = list(what(*arguments))
            with self._lock:
                for name, value, how_many in counts:
                    self._pending[name, value] += how_many  # type: ignore[assignment]
        except Exception as error:
            self._complain(error)

    def stop(self) -> None:
        """Report the remaining sums."""
        self._stopping.set()
        self._stopped.wait(STOP_TIMEOUT_S)

    def _hand_over(self) -> None:
        """Report until `stop`, then never return: that keeps the metrics alive until the process ends.

        If an instance deletes its metrics, Triton also deletes those that other instances share, and
        tritonserver 2.51.0 then writes into freed memory and aborts. They take a few kilobytes.
        """
        metrics = Metrics(self._pb_utils, self._args)
        try:
            metrics.declare(self._families, self._watches_memory)
            self._hand_over_until_stopped(metrics)
            metrics.retire()
        except Exception as error:
            self._complain(error)
        self._stopped.set()
        threading.Event().wait()

    def _hand_over_until_stopped(self, metrics: Metrics) -> None:
        look_at_s = time.monotonic()
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(PERIOD_S)
            with self._lock:
                pending, self._pending = self._pending, Counter()
            try:
                metrics.add(pending)
                if self._watches_memory and time.monotonic() >= look_at_s:
                    metrics.set_memory(server_memory_bytes())
                    look_at_s = time.monotonic() + MEMORY_PERIOD_S
            except Exception as error:
                self._complain(error)

    def _complain(self, error: Exception) -> None:
        """Log an error once: the next batches would fail in the same way."""
        if not self._has_complained:
            self._has_complained = True
            with contextlib.suppress(Exception):
                message = f"{self._args['model_name']}: metrics: {type(error).__name__}: {error}"
                self._pb_utils.Logger.log_error(message)


class Metrics:
    """Those of one instance, in Triton. Instances of one version share their counters."""

    def __init__(self, pb_utils: Any, args: Mapping[str, str]) -> None:
        self._kinds = pb_utils.MetricFamily
        self._args = args
        self._families: list[Any] = []
        self._counters: dict[tuple[str, str], Any] = {}
        self._alive: Any = None
        self._memory: Any = None

    def declare(self, families: Sequence[Family], watches_memory: bool) -> None:
        """Start all at zero, so that the first event shows as an increase."""
        version = {"version": self._args["model_version"]}
        for family in families:
            made = self._family(family.name, family.description, self._kinds.COUNTER)
            for value in family.values:
                labels = {**version, **({family.label: value} if family.label else {})}
                self._counters[family.name, value] = made.Metric(labels=labels)
        made = self._family(
            ALIVE, "When the process was last alive; 0: it ended normally.", self._kinds.GAUGE
        )
        instance = {"model": self._args["model_name"], "instance_name": self._args["model_instance_name"]}
        self._alive = made.Metric(labels={**instance, **version})
        if watches_memory:
            made = self._family(
                MEMORY, "Anonymous memory of tritonserver and its processes.", self._kinds.GAUGE
            )
            self._memory = made.Metric(labels={})

    def add(self, pending: Mapping[tuple[str, str], float]) -> None:
        """Add the sums, and report that the process is alive. Raises KeyError for an unknown metric."""
        self._alive.set(time.time())
        for key, how_many in pending.items():
            self._counters[key].increment(how_many)

    def set_memory(self, memory_bytes: int) -> None:
        self._memory.set(memory_bytes)

    def retire(self) -> None:
        """Report that the process ends normally."""
        self._alive.set(0)

    def _family(self, name: str, description: str, kind: Any) -> Any:
        made = self._kinds(name=name, description=description, kind=kind)
        self._families.append(made)
        return made


def server_memory_bytes() -> int:
    """Anonymous memory of tritonserver (this process's parent) and its children. Shared memory and files are
    left out, because each process would count them again."""
    server = os.getppid()
    total = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        status = _read(path)
        if path.parent.name == str(server) or _number(status, "PPid") == server:
            total += _number(status, "RssAnon") * 1024
    return total


def _read(path: Path) -> str:
    """Empty if the process has ended."""
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", "replace")
    return ""


def _number(status: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0
