"""Judges from outside whether a running tritonserver is healthy. It ends nothing.

A server is unhealthy if

- a stub stays a zombie: tritonserver 2.51.0 neither reaps nor replaces it (docs/triton.md, 22). Requests may
  still be answered by another instance, so they do not show it.
- a stub is gone and its version has more instances than living stubs. Servers from 25.12 on reap a dead stub,
  so it may never be seen as a zombie. With fewer instances it has ended normally.
- an answer says so ("Stub process ... is not healthy"), also for stopped stubs.
- our plain request gets another server error repeatedly, such as after a GPU's context is lost.
- for a long time neither our request nor any other was answered. One refusal or timeout means nothing: a busy
  server does the same.
- gRPC does not respond to a connection for as long. After a storm of cancelled calls, 2.51.0 did that
  while HTTP still worked.

An unloaded ensemble is no fault: a drain or an administrator unloaded it.
"""

from __future__ import annotations

import dataclasses
import http.client
import re
import time
from collections.abc import Callable

from diptych_serving.repository.layout import ENSEMBLE
from diptych_serving.server import leftovers
from diptych_serving.server.probe import (
    DEAD_STUB_WORDS,
    Kind,
    Reply,
    ask,
    grpc_responds,
    num_instances,
    request,
)

# Longer than one batch of a large model on a slow CPU: each answer from a full queue counts as a sign of
# life.
SILENCE_S = 30.0
ASK_TIMEOUT_S = 5.0
# A shorter time may be a version that was just unloaded: its stub ends before Triton reaps it.
DEAD_S = 2.0
NUM_ERRORS = 3
SUCCESSES = re.compile(
    rf'^nv_inference_request_success\{{[^}}]*model="{ENSEMBLE}"[^}}]*\}} (\S+)', re.MULTILINE
)


@dataclasses.dataclass
class Vitals:
    """The health of one server, from when it was ready.

    pid, http, grpc, metrics  its process id; its addresses as (host, port)
    is_secure                 whether gRPC is encrypted
    silence_s                 seconds without an answer after which it counts as hung
    """

    pid: int
    http: tuple[str, int]
    grpc: tuple[str, int]
    metrics: tuple[str, int]
    is_secure: bool = False
    silence_s: float = SILENCE_S
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._life_s = self._grpc_life_s = self.clock()
        self._successes: float | None = None
        self._num_errors = 0
        # model and version of each stub that has been seen alive
        self._stubs: dict[int, tuple[str, str]] = {}
        self._gone_since_s: dict[int, float] = {}

    def find_dead_process(self) -> str | None:
        """Cheap: reads /proc, and asks the server only about missing stubs. Returns what has died."""
        now_s = self.clock()
        children = leftovers.children_of(self.pid)
        self._stubs |= {
            child.pid: (child.model, child.version) for child in children if child.model and child.version
        }
        zombies = {child.pid for child in children if child.is_zombie}
        living = {child.pid for child in children} - zombies
        gone = zombies | (self._stubs.keys() - living)
        self._gone_since_s = {pid: self._gone_since_s.get(pid, now_s) for pid in gone}
        for pid, since_s in self._gone_since_s.items():
            if now_s - since_s < DEAD_S:
                continue
            model, version = self._stubs.get(pid, ("a model", ""))
            if pid in zombies or self._is_short_of_stubs(model, version, living):
                return f"the process of {model} died (process {pid})"
            del self._stubs[pid]  # it ended normally
        return None

    def _is_short_of_stubs(self, model: str, version: str, living: set[int]) -> bool:
        num_living = sum(stub == (model, version) for pid, stub in self._stubs.items() if pid in living)
        return num_instances(*self.http, model, version, ASK_TIMEOUT_S) > num_living

    def find_fault(self) -> str | None:
        """Ask the ensemble, then connect over gRPC, each within ASK_TIMEOUT_S. Returns the fault as text."""
        reply = ask(*self.http, ASK_TIMEOUT_S)
        return self.judge(reply, count_successes(*self.metrics, ASK_TIMEOUT_S)) or self.judge_grpc(
            grpc_responds(*self.grpc, is_secure=self.is_secure, timeout_s=ASK_TIMEOUT_S)
        )

    def judge(self, reply: Reply, successes: float | None) -> str | None:
        """What a reply means, given the number of all answered requests (None: unknown)."""
        now_s = self.clock()
        has_moved = None not in (successes, self._successes) and successes != self._successes
        if successes is not None:
            self._successes = successes
        if reply.kind is Kind.BROKEN:
            self._num_errors += 1
            if DEAD_STUB_WORDS in reply.words:
                return f"a model's process does not answer: {reply.words}"
            if self._num_errors >= NUM_ERRORS:
                return f"it answers {NUM_ERRORS} plain questions in a row with an error: {reply.words}"
        else:
            self._num_errors = 0
        if reply.kind not in (Kind.BUSY, Kind.SILENT) or has_moved:
            self._life_s = now_s
        elif now_s - self._life_s > self.silence_s:
            return f"no request was answered for {now_s - self._life_s:.0f} s; the last try: {reply.words}"
        return None

    def judge_grpc(self, has_responded: bool) -> str | None:
        """What it means that gRPC has or has not responded to a connection."""
        now_s = self.clock()
        if has_responded:
            self._grpc_life_s = now_s
        elif now_s - self._grpc_life_s > self.silence_s:
            return f"gRPC has not responded for {now_s - self._grpc_life_s:.0f} s"
        return None


def count_successes(host: str, metrics_port: int, timeout_s: float) -> float | None:
    """The number of requests that the ensemble has answered; None if the metrics are not available."""
    try:
        _, text = request(host, metrics_port, "GET", "/metrics", timeout_s)
    except (OSError, http.client.HTTPException):
        return None
    return sum(map(float, SUCCESSES.findall(text)))
