"""Makes calls and records each once: for Locust's tables, and on the timeline."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import gevent
from locust.event import EventHook

from loadtest.payloads import Payload
from loadtest.timeline import Timeline
from loadtest.wires import CallFailed, Encoded, Wire

# A call that starts this much later than planned counts as late, because of the generator.
LATE_S = 0.02


class WronglyAnswered(Exception):
    """A corrupt input got an answer."""


class MissedArrival(Exception):
    """The call was due, but the generator had too many in flight to start another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One call, ready to be sent."""

    payload: Payload
    encoded: Encoded


class Caller:
    """The shared state of all users of one process."""

    def __init__(
        self, wire: Wire, timeline: Timeline, request_event: EventHook, *, max_in_flight: int
    ) -> None:
        self._wire = wire
        self._timeline = timeline
        self._request_event = request_event
        self._max_in_flight = max_in_flight
        self.num_in_flight = 0

    def prepare(self, payload: Payload) -> Call:
        return Call(payload=payload, encoded=self._wire.encode(payload.request))

    def start(self, call: Call, intended_start_s: float) -> None:
        """Start a call and return. Its latency counts from the planned start, on the monotonic clock."""
        if self.num_in_flight >= self._max_in_flight:
            self._timeline.record_missed(start_s=_on_wall_clock(intended_start_s))
            self._report(call, latency_ms=None, error=MissedArrival(f"{self._max_in_flight} calls in flight"))
            return
        self.num_in_flight += 1
        gevent.spawn(self._run, call, intended_start_s)

    def run(self, call: Call) -> None:
        """Make a call now and wait for its end."""
        self.num_in_flight += 1
        self._run(call, time.monotonic())

    def _run(self, call: Call, intended_start_s: float) -> None:
        is_late = time.monotonic() - intended_start_s > LATE_S
        answer, error = None, None
        try:
            answer = self._wire.send(call.encoded)
        except Exception as failure:  # any error is one failed call
            error = failure
        latency_ms = 1000 * (time.monotonic() - intended_start_s)
        self.num_in_flight -= 1
        size_bytes, error = self._judge(call, answer, error)
        self._timeline.record_call(
            start_s=_on_wall_clock(intended_start_s),
            latency_ms=latency_ms,
            is_late=is_late,
            is_good=error is None,
        )
        self._report(call, latency_ms=latency_ms, error=error, size_bytes=size_bytes)

    def _judge(self, call: Call, answer: Any, error: Exception | None) -> tuple[int, Exception | None]:
        """The answer's size and the failure; a refusal of a corrupt input is no failure."""
        if call.payload.must_be_refused:
            if isinstance(error, CallFailed) and error.status == self._wire.refusal:
                return 0, None
            return 0, error or WronglyAnswered("a corrupt input got an answer")
        if error is not None:
            return 0, error
        try:
            return self._wire.check(call.encoded, answer), None
        except Exception as fault:  # an answer that cannot be read is one failed call
            return 0, fault

    def _report(
        self, call: Call, *, latency_ms: float | None, error: Exception | None, size_bytes: int = 0
    ) -> None:
        self._request_event.fire(
            request_type=self._wire.name,
            name=call.payload.kind,
            response_time=latency_ms,
            response_length=size_bytes,
            exception=error,
            context={},
        )


def _on_wall_clock(monotonic_s: float) -> float:
    return time.time() - (time.monotonic() - monotonic_s)
