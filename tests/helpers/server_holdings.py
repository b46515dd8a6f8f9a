"""What a server that a test started holds: requests in its queues, and what the system lent it."""

from __future__ import annotations

import os
import urllib.request

import psutil

from diptych_serving.server import Server, leftovers


def num_pending(server: Server) -> float:
    """Requests that are in some queue."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.metrics_url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    gauges = [line for line in lines if line.startswith("nv_inference_pending_request_count{")]
    assert gauges
    return sum(float(line.split()[-1]) for line in gauges)


class Holdings:
    """What a server and its processes hold: descriptors, threads, processes, MiB of shared memory."""

    def __init__(self, server: Server) -> None:
        triton = psutil.Process(server.process.pid)
        tree = [triton, *triton.children(recursive=True)]
        ours = f"{leftovers.owner_prefix(os.getpid())}*"
        regions = [path.stat().st_blocks * 512 for path in leftovers.SHARED_MEMORY.glob(ours)]
        self.counts = {
            "descriptors": sum(process.num_fds() for process in tree),
            "threads": sum(process.num_threads() for process in tree),
            "processes": len(tree),
            "shared_memory_mib": sum(regions) / 2**20,
        }

    def has_grown_since(self, before: Holdings, **allowed: float) -> bool:
        return any(self.counts[name] > before.counts[name] + more for name, more in allowed.items())
