"""Coordinate descent: changes one setting at a time and keeps it if it helps, until none helps or time is up.

It does not know how a trial is made. The settings are few and nearly independent (one more instance of the
slowest step helps at any queue delay). A random search would first have to learn that, and with a minute
for each trial there is no time for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych_serving.repository.settings import Settings
from diptych_serving.tuning.load import Load

# Less than this is noise: two measurements of one setting on a shared two-core machine differed by this.
WORTHWHILE_GAIN = 1.05
FINALISTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the server under several loads."""

    settings: Settings
    loads: Sequence[Load]

    def best(self, p99_limit_ms: float) -> Load:
        """The load with the highest throughput within the limit, else the one with the lowest p99."""
        within = [load for load in self.loads if load.p99_ms <= p99_limit_ms and not load.num_errors]
        if within:
            return max(within, key=lambda load: load.items_per_s)
        return min(self.loads, key=lambda load: load.p99_ms)

    def score(self, p99_limit_ms: float) -> float:
        """Items per second within the limit. If no load is within it: below 1, and lower for a higher p99."""
        load = self.best(p99_limit_ms)
        if load.p99_ms > p99_limit_ms or load.num_errors:
            return p99_limit_ms / load.p99_ms if load.p99_ms > p99_limit_ms else 0.0
        return load.items_per_s


def axes_for(num_cores: int, precisions: Sequence[str]) -> dict[str, list[Any]]:
    """Values of each setting on a machine with this number of cores, the most important settings first.

    max_queue_delay_us is left out: with a delay and queue timeouts, tritonserver loses throughput permanently
    (its issue 8870; repaired in July 2026).
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

    has_time  whether there is time for this number of trials; the first one is always made
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
    """Measure the best trials again, because the best of many noisy trials is partly luck."""
    leaders = sorted(trials, key=lambda trial: -trial.score(p99_limit_ms))[:FINALISTS]
    means = {}
    for leader in leaders:
        scores = [leader.score(p99_limit_ms)]
        if len(leaders) > 1 and has_time(1):
            trials.append(run_trial(leader.settings))
            scores.append(trials[-1].score(p99_limit_ms))
        means[leader.settings] = sum(scores) / len(scores)
    return max(means, key=lambda settings: means[settings])
