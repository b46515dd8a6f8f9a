"""Coordinate descent: one setting at a time, kept where it helps, until none does or the time is up.

Pure: what a trial is and how long it takes are the caller's. The settings are few and nearly independent (an
instance more of the slowest step helps whatever the queue delay), which a sampler of random points would have
to find out first; with a minute a trial there is no time for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych_serving.repository.settings import Settings
from diptych_serving.tuning.closed_loop import Load

# Less than this is noise: two measurements of one setting on a shared two-core machine differed by as much.
WORTHWHILE_GAIN = 1.05
FINALISTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the server under several loads."""

    settings: Settings
    loads: Sequence[Load]

    def best(self, p99_limit_ms: float) -> Load:
        """The load of the highest throughput within the limit; where none is, that of the lowest p99."""
        within = [load for load in self.loads if load.p99_ms <= p99_limit_ms and not load.num_errors]
        if within:
            return max(within, key=lambda load: load.items_per_s)
        return min(self.loads, key=lambda load: load.p99_ms)

    def score(self, p99_limit_ms: float) -> float:
        """Items per second within the limit; below 1, and the lower the slower, where no load is within."""
        load = self.best(p99_limit_ms)
        if load.p99_ms > p99_limit_ms or load.num_errors:
            return p99_limit_ms / load.p99_ms if load.p99_ms > p99_limit_ms else 0.0
        return load.items_per_s


def axes_for(num_cores: int, precisions: Sequence[str]) -> dict[str, list[Any]]:
    """What each setting may be on a machine of so many cores, the most telling settings first.

    max_queue_delay_us is not among them: with a delay and the timeouts that queues need, tritonserver loses
    throughput for good (its issue 8870; mended in July 2026).
    """
    counts = sorted({1, 2, max(1, num_cores // 2), num_cores})
    counts = [count for count in counts if count <= max(2, num_cores)]
    return {
        "precision": list(precisions),
        "image_encoder_instances": counts,
        "text_encoder_instances": counts,
        "preprocess_instances": counts,
        "encoder_threads": sorted({1, min(2, num_cores), num_cores}),
        "preferred_batch_size": [0, 8, 4, 2, 1],
    }


def search(
    start: Settings,
    axes: Mapping[str, Sequence[Any]],
    run_trial: Callable[[Settings], Trial],
    has_time: Callable[[int], bool],
    p99_limit_ms: float,
) -> tuple[Settings, list[Trial]]:
    """The best settings found, and all trials.

    has_time  whether there is time for so many more trials; the first one is always made
    """
    trials = [run_trial(start)]
    tried = {start}
    best = trials[0]
    is_improving = True
    while is_improving:
        is_improving = False
        for name, values in axes.items():
            for value in values:
                candidate = dataclasses.replace(best.settings, **{name: value})
                if candidate in tried or not has_time(1 + FINALISTS):
                    continue
                tried.add(candidate)
                trials.append(run_trial(candidate))
                if trials[-1].score(p99_limit_ms) > WORTHWHILE_GAIN * best.score(p99_limit_ms):
                    best, is_improving = trials[-1], True
    return _final(trials, run_trial, has_time, p99_limit_ms), trials


def _final(
    trials: list[Trial],
    run_trial: Callable[[Settings], Trial],
    has_time: Callable[[int], bool],
    p99_limit_ms: float,
) -> Settings:
    """Measure the leaders again: the best of many noisy trials is a lucky one."""
    leaders = sorted(trials, key=lambda trial: -trial.score(p99_limit_ms))[:FINALISTS]
    means = {}
    for leader in leaders:
        scores = [leader.score(p99_limit_ms)]
        if len(leaders) > 1 and has_time(1):
            trials.append(run_trial(leader.settings))
            scores.append(trials[-1].score(p99_limit_ms))
        means[leader.settings] = sum(scores) / len(scores)
    return max(means, key=lambda settings: means[settings])
