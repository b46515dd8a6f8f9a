"""Goodput at three times the peak load: `python -m bench.overload`.

First the peak, in closed loop; then three times as many calls a second in open loop, without retries. Goodput
(answers within the deadline) must stay at 80 % of the peak, else the exit status is 1.

The generator is a separate process. It takes CPU from the server, so its share is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np

from diptych_client import Overloaded
from diptych_serving.errors import UserError
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.signals import end_in_order
from diptych_serving.traffic import Recording, Traffic, outcomes, save_items, send_from_another_process
from diptych_serving.tuning.load import measure_load
from diptych_serving.tuning.tune import made_up_mix

CONCURRENCIES = (8, 16, 32)
FACTOR = 3.0
MIN_GOODPUT_SHARE = 0.8
WARMUP_S = 5.0
DEADLINE_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overload:
    """Results of the open loop after the warm-up. Times in milliseconds."""

    offered_per_s: float
    goodput_per_s: float
    outcomes: dict[str, int]
    answered_p50_ms: float
    answered_p99_ms: float
    refused_p50_ms: float
    refused_p99_ms: float
    generator_cores: float


def main() -> int:
    end_in_order()
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("build/model_repository"))
    parser.add_argument(
        "--duration-s", type=float, default=30.0, help="of the overload; the peak takes a third"
    )
    parser.add_argument("--factor", type=float, default=FACTOR)
    options = parser.parse_args()
    try:
        return _measure(options.repository, options.duration_s, options.factor)
    except UserError as error:
        sys.exit(f"error: {error}")


def _measure(repository: Path, duration_s: float, factor: float) -> int:
    with tempfile.TemporaryDirectory() as directory:
        items = Path(directory) / "items"
        save_items(made_up_mix(), items)
        with Server(repository, ServerConfig.on_free_ports()) as server:
            server.wait_until_ready()
            peak = max(
                (
                    measure_load(server.grpc_url, items, concurrency=concurrency, duration_s=duration_s / 3)
                    for concurrency in CONCURRENCIES
                ),
                key=lambda load: load.items_per_s,
            )
            _say(
                f"peak  {peak.items_per_s:.1f} answers/s with {peak.concurrency} callers, "
                f"p99 {peak.p99_ms:.0f} ms"
            )
            recording = send_from_another_process(
                Traffic(
                    url=server.grpc_url,
                    items=items,
                    calls_per_s=factor * peak.items_per_s,
                    arrivals="constant",
                    duration_s=duration_s,
                    warmup_s=WARMUP_S,
                    timeout_s=DEADLINE_S,
                    retries=False,
                )
            )
            overload = judge(recording)
            after = measure_load(
                server.grpc_url, items, concurrency=peak.concurrency, duration_s=duration_s / 3
            )
    share = overload.goodput_per_s / peak.items_per_s
    _say(
        f"asked {overload.offered_per_s:.1f} calls/s: goodput {overload.goodput_per_s:.1f}/s, "
        f"{share:.0%} of the peak\n"
        f"      answered p50 {overload.answered_p50_ms:.0f} ms, p99 {overload.answered_p99_ms:.0f} ms; "
        f"refused p50 {overload.refused_p50_ms:.1f} ms, p99 {overload.refused_p99_ms:.1f} ms\n"
        f"      {overload.outcomes}; the generator took {overload.generator_cores:.2f} cores\n"
        f"after {after.items_per_s:.1f} answers/s, {after.num_errors} errors"
    )
    if share >= MIN_GOODPUT_SHARE:
        return 0
    _say(f"BROKEN: goodput {share:.0%} of the peak, promised {MIN_GOODPUT_SHARE:.0%}")
    return 1


def judge(recording: Recording) -> Overload:
    """Of the calls that were due after the warm-up."""
    late = [call for call in recording.calls if call.start_s >= recording.begin_s]
    answered = [call.latency_ms for call in late if call.is_answered]
    refused = [call.latency_ms for call in late if call.outcome == Overloaded.__name__]
    return Overload(
        offered_per_s=len(late) / recording.duration_s,
        goodput_per_s=len(answered) / recording.duration_s,
        outcomes=dict(outcomes(late)),
        answered_p50_ms=_percentile(answered, 50),
        answered_p99_ms=_percentile(answered, 99),
        refused_p50_ms=_percentile(refused, 50),
        refused_p99_ms=_percentile(refused, 99),
        generator_cores=recording.cpu_s / recording.duration_s,
    )


def _percentile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else float("nan")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
