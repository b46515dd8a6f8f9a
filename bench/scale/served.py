"""A real server on chosen cores, and what it costs: the side of the real world for calibration and check."""

from __future__ import annotations

import contextlib
import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from diptych_serving.repository.layout import STEPS
from diptych_serving.repository.settings import Settings
from diptych_serving.server import Server
from diptych_serving.server.config import ServerConfig

FRONT = "tritonserver"


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Processes that are started inside the `with` stay on these cores. The caller gets its own back."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def serving_on(repository: Path, core: int) -> Iterator[tuple[Server, float]]:
    """A server with the settings for one core, on that core; and the seconds that its start took."""
    with contextlib.ExitStack() as stack:
        started_s = time.monotonic()
        with on_cores({core}):
            server = Server(repository, ServerConfig.on_free_ports(settings=Settings.for_cores(1)))
            stack.enter_context(server)
        server.wait_until_ready()
        yield server, time.monotonic() - started_s


def cpu_ns(server: Server) -> dict[str, int]:
    """CPU time of each step's processes and of tritonserver itself, from the kernel's own clock."""
    root = psutil.Process(server.process.pid)
    found = dict.fromkeys((FRONT, *STEPS), 0)
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            words = " ".join(process.cmdline()[:3])
            name = next((step for step in STEPS if f"/{step}/" in words), FRONT)
            found[name] += sum(_task_ns(task) for task in Path(f"/proc/{process.pid}/task").iterdir())
    return found


def _task_ns(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text("ascii").split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def busy_s() -> float:
    """CPU seconds of everything on this machine since its start."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def load_catalogue(path: Path, num_items: int) -> list[tuple[bytes, str]]:
    """Image file and text of rows that are spread over a CSV, as `diptych data` writes it."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = rows[:: max(1, len(rows) // num_items)][:num_items]
    return [((path.parent / row["image_path"]).read_bytes(), row["description"]) for row in chosen]
