"""`diptych tune`: trials against the real server, their chart, and the best settings."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diptych_serving.hardware import num_cores
from diptych_serving.progress import console
from diptych_serving.repository.settings import Settings, save_settings
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.gpu import has_gpu
from diptych_serving.traffic import save_items
from diptych_serving.tuning.chart import plot_trials
from diptych_serving.tuning.load import Load, measure_load
from diptych_serving.tuning.search import Trial, axes_for, search

CONCURRENCIES = (2, 4, 8, 16, 32)
MADE_UP_ITEMS = 32
MADE_UP_SIZE_PX = (640, 480)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """p99_ms  the limit of the 99th percentile
    budget_s  how long the search may take, in seconds
    load_s    how long each load of a trial is measured
    """

    p99_ms: float
    budget_s: float = 600.0
    load_s: float = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """The result of a search."""

    settings: Settings
    trials: Sequence[Trial]
    best: Load


def tune(
    repositories: Mapping[str, Path],
    items: Sequence[tuple[bytes, str]],
    config: TuneConfig,
    out: Path,
    plot: Path,
) -> Tuned:
    """Search; write the best settings and the chart.

    repositories  repositories by precision; 'auto' is a repository as exported
    items         (image file, text) pairs, like those that the server will get
    """
    cores = num_cores()
    precision = next(iter(repositories))
    begin = Settings.for_cores(cores, on_gpu=has_gpu())
    start = dataclasses.replace(begin, precision=precision)  # type: ignore[arg-type]
    clock = _Clock(config.budget_s)
    console.print(f"Budget {config.budget_s:.0f} s, {cores} cores, p99 at most {config.p99_ms:g} ms")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "items")
        save_items(items, path)

        def run_trial(settings: Settings) -> Trial:
            start_s = clock.spent_s
            trial = _run_trial(repositories[settings.precision], settings, path, config)
            clock.longest_s = max(clock.longest_s, clock.spent_s - start_s)
            _say(trial, start, config, clock)
            return trial

        axes = axes_for(cores, list(repositories))
        settings, trials = search(start, axes, run_trial, clock.has_time, config.p99_ms)
    best = max(
        (trial for trial in trials if trial.settings == settings),
        key=lambda trial: trial.score(config.p99_ms),
    ).best(config.p99_ms)
    save_settings(settings, out, _describe(best, trials, config, cores))
    plot_trials(trials, settings, config.p99_ms, plot)
    return Tuned(settings=settings, trials=trials, best=best)


def made_up_mix() -> list[tuple[bytes, str]]:
    """JPEGs of a photo's size with a sentence each, if there are no recorded requests."""
    random = np.random.default_rng(0)
    items = []
    for number in range(MADE_UP_ITEMS):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize(MADE_UP_SIZE_PX, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        items.append((file.getvalue(), f"item number {number}, described in about ten words or so"))
    return items


def _run_trial(repository: Path, settings: Settings, items: Path, config: TuneConfig) -> Trial:
    """Increase the callers until the limit is exceeded or more callers do not help."""
    loads: list[Load] = []
    with Server(repository, ServerConfig.on_free_ports(settings=settings)) as server:
        server.wait_until_ready()
        for concurrency in CONCURRENCIES:
            load = measure_load(server.grpc_url, items, concurrency=concurrency, duration_s=config.load_s)
            loads.append(load)
            if load.p99_ms > config.p99_ms:
                break
    return Trial(settings=settings, loads=loads)


class _Clock:
    """The time left in the budget, in trials as long as the longest so far."""

    def __init__(self, budget_s: float) -> None:
        self._start_s = time.monotonic()
        self._budget_s = budget_s
        self.longest_s = 0.0

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._start_s

    def has_time(self, num_trials: int) -> bool:
        return self.spent_s + num_trials * self.longest_s <= self._budget_s


def _say(trial: Trial, start: Settings, config: TuneConfig, clock: _Clock) -> None:
    load = trial.best(config.p99_ms)
    changed = {
        name: value
        for name, value in dataclasses.asdict(trial.settings).items()
        if value != getattr(start, name)
    }
    settings = ", ".join(f"{name} {value}" for name, value in changed.items()) or "as exported"
    console.print(
        f"{clock.spent_s:5.0f} s  {load.items_per_s:6.1f} items/s  p99 {load.p99_ms:6.0f} ms  {settings}",
        highlight=False,
        soft_wrap=True,
    )


def _describe(best: Load, trials: Sequence[Trial], config: TuneConfig, num_cores: int) -> str:
    return (
        f"Found by diptych tune: {len(trials)} trials on {num_cores} cores.\n"
        f"{best.items_per_s:.1f} items/s at p99 {best.p99_ms:.0f} ms with {best.concurrency} callers; "
        f"the limit was {config.p99_ms:g} ms."
    )
