"""What the callers of a server saw under one load."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from diptych_serving.errors import UserError
from diptych_serving.traffic import Recording, Traffic, send_from_another_process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What was answered between the warm-up and the end; num_answered and num_errors count all calls.

    Times in milliseconds, client_cpu_ms for each item.
    """

    concurrency: int
    num_items: int
    num_answered: int
    num_errors: int
    items_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    client_cpu_ms: float


def measure_load(
    url: str, items: Path, *, concurrency: int, duration_s: float, caller: str = "diptych"
) -> Load:
    """Load a server in a closed loop, from another process; `Traffic` says what items and caller are.

    raises  UserError where the load could not be made
    """
    traffic = Traffic(url=url, items=items, num_callers=concurrency, duration_s=duration_s, caller=caller)
    return judge(send_from_another_process(traffic), concurrency)


def judge(recording: Recording, concurrency: int) -> Load:
    """Raises UserError where nothing was answered in time."""
    answered = [call for call in recording.calls if call.is_answered]
    found = [call.latency_ms for call in answered if recording.begin_s <= call.end_s <= recording.end_s]
    if not found:
        raise UserError(f"no answer within {recording.duration_s:g} s, {recording.num_errors} errors")
    p50, p95, p99 = np.percentile(found, [50, 95, 99]).tolist()
    return Load(
        concurrency=concurrency,
        num_items=len(found),
        num_answered=len(answered),
        num_errors=recording.num_errors,
        items_per_s=len(found) / recording.duration_s,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        client_cpu_ms=recording.cpu_s * 1000 / len(found),
    )
