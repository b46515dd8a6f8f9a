"""Notices that a running server has become unhealthy, and decides whether to restart it.

tritonserver 2.51.0 does neither. The watching runs in its own thread, because a request to a hung server
takes its whole timeout.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from types import TracebackType

from diptych_serving.server.vitals import Vitals

# Two looks at the processes fit between a stub's death and the next request.
LOOK_S = 1.0
ASK_EVERY_S = 5.0


class Watch:
    """A context manager: inside the `with`, a thread watches a server. `fault` names the first fault."""

    def __init__(self, vitals: Vitals, ask_every_s: float = ASK_EVERY_S) -> None:
        self.fault: str | None = None
        self._vitals = vitals
        self._ask_every_s = ask_every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()  # not joined: it may be waiting for an answer, and changes nothing

    def _look(self) -> None:
        asked_s = time.monotonic()
        while self.fault is None and not self._is_over.wait(LOOK_S):
            fault = self._vitals.find_dead_process()
            if fault is None and time.monotonic() - asked_s >= self._ask_every_s:
                fault = self._vitals.find_fault()
                asked_s = time.monotonic()
            self.fault = fault


@dataclasses.dataclass(kw_only=True)
class Restarts:
    """How often to restart in a row, and after which pauses.

    max_in_a_row     restarts without a healthy period between them; 0 for containers, which the
                     orchestrator restarts
    healthy_after_s  after this healthy time the count starts again
    """

    max_in_a_row: int = 5
    healthy_after_s: float = 60.0
    first_pause_s: float = 0.5
    last_pause_s: float = 30.0
    num_in_a_row: int = 0

    def next_pause_s(self, was_well_s: float) -> float | None:
        """Seconds to wait before the next start; None: do not restart."""
        if was_well_s >= self.healthy_after_s:
            self.num_in_a_row = 0
        if self.num_in_a_row >= self.max_in_a_row:
            return None
        self.num_in_a_row += 1
        return min(self.last_pause_s, self.first_pause_s * 2.0 ** (self.num_in_a_row - 1))
