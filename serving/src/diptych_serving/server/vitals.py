"""Judges from the outside whether a running tritonserver is healthy. It asks and reads; it ends nothing.

What counts, and why:

- A stub that is a zombie for longer than a moment is dead: tritonserver 2.51.0 does not wait for it, does not
  start another, and says 200 on every health URL. This finds it even where another instance of the same model
  still answers, so that the question would be answered by luck.
- Later servers (from 25.12) collect a dead stub when anybody asks whether its model is ready, so it may never
  be seen as a zombie. A stub that is gone is dead where its version has more instances than living stubs.
  Otherwise it has ended in order, because its version was unloaded or given fewer instances.
- An answer that says so ("Stub process ... is not healthy") is proof, for stopped stubs too.
- Any other error of the server's own to a question as plain as ours is proof when it is repeated: a GPU whose
  context is lost answers so for ever.
- A refusal (full queue, time over) and silence prove nothing: a busy server does the same. They become proof
  when for a long time neither our question nor anybody else's was answered: then nothing moves in there.
- gRPC can stop responding while HTTP still works: a storm of cancelled calls left 2.51.0 so. So a connection
  to it is opened too, without a call; silence there, for as long, is proof of its own.
- That the ensemble is not loaded is somebody's decision: draining, or an administrator's. Not ours to undo.
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

# Above the longest that an answer takes: a full queue of 256 on two cores is worked off in seconds, but each
# one of those answers moves the counter. One batch of a large model on a slow CPU is what must fit.
SILENCE_S = 30.0
ASK_TIMEOUT_S = 5.0
# For less, it may be a version that was just unloaded: its stub has ended before Triton collects it.
DEAD_S = 2.0
NUM_ERRORS = 3
SUCCESSES = re.compile(
    rf'^nv_inference_request_success\{{[^}}]*model="{ENSEMBLE}"[^}}]*\}} (\S+)', re.MULTILINE
)


@dataclasses.dataclass
class Vitals:
    """Of one server, from when it was ready.

    pid, http, grpc, metrics  whom to look at; its addresses as (host, port)
    is_secure                 whether gRPC is encrypted
    silence_s                 without a sign of life, after which nothing moves in there
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
        self._stubs: dict[int, tuple[str, str]] = {}  # model and version of each that has been seen alive
        self._gone_since_s: dict[int, float] = {}

    def find_dead_process(self) -> str | None:
        """Cheap: reads /proc, and asks the server only about a stub that is gone. Returns what has died."""
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
            del self._stubs[pid]  # it ended in order
        return None

    def _is_short_of_stubs(self, model: str, version: str, living: set[int]) -> bool:
        num_living = sum(stub == (model, version) for pid, stub in self._stubs.items() if pid in living)
        return num_instances(*self.http, model, version, ASK_TIMEOUT_S) > num_living

    def find_fault(self) -> str | None:
        """Ask the ensemble, then connect over gRPC, each within ASK_TIMEOUT_S. Returns the fault in words."""
        reply = ask(*self.http, ASK_TIMEOUT_S)
        return self.judge(reply, count_successes(*self.metrics, ASK_TIMEOUT_S)) or self.judge_grpc(
            grpc_responds(*self.grpc, is_secure=self.is_secure, timeout_s=ASK_TIMEOUT_S)
        )

    def judge(self, reply: Reply, successes: float | None) -> str | None:
        """What a reply means, given how many requests of anybody's were answered (None: not to be had)."""
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
        """What it means that gRPC has responded to a connection or has not."""
        now_s = self.clock()
        if has_responded:
            self._grpc_life_s = now_s
        elif now_s - self._grpc_life_s > self.silence_s:
            return f"gRPC has not responded for {now_s - self._grpc_life_s:.0f} s"
        return None


def count_successes(host: str, metrics_port: int, timeout_s: float) -> float | None:
    """How many requests the ensemble has answered, anybody's; None where the metrics are not to be had."""
    try:
        _, text = request(host, metrics_port, "GET", "/metrics", timeout_s)
    except (OSError, http.client.HTTPException):
        return None
    return sum(map(float, SUCCESSES.findall(text)))
