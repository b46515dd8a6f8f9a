"""What one request costs a pod, and the rules of its queues: the simulation's inputs, read from files.

It measures nothing (`calibrate.py` does) and simulates nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import msgspec

from diptych_serving.errors import UserError
from diptych_serving.repository.layout import CONFIG_FILE, STEPS
from diptych_serving.repository.settings import Settings, edit_config

# Linux shares a core by weight: 1024 is ordinary, 110 is the niceness 10 of preprocess/model.py.
WEIGHT, NICED_WEIGHT = 1024.0, 110.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCost:
    """CPU milliseconds of one execution of a step: `fixed_ms` and `row_ms` for each row."""

    fixed_ms: float
    row_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """steps        by name of the step
    front_ms     CPU milliseconds of a request in tritonserver itself
    idle_ms      what a single request takes beyond all its CPU time
    items        for each measured item, what it costs as a multiple of the mean, by step
    item_bytes   of one request, mean
    start_s      from the start of tritonserver to its first answer
    num_series   that one server shows to Prometheus
    measured     hardware, versions and how busy the machine was
    """

    steps: dict[str, StepCost]
    front_ms: float
    idle_ms: float
    items: list[dict[str, float]]
    item_bytes: float
    start_s: float
    release_mib: float
    release_files: int
    num_series: int
    measured: dict[str, str]

    def cpu_ms(self, num_rows: int = 1) -> float:
        """Of one row, where each execution holds that many."""
        steps = sum(cost.fixed_ms / num_rows + cost.row_ms for cost in self.steps.values())
        return self.front_ms + steps

    def scaled(self, cpu_ms: float) -> Costs:
        """The same shape with another sum: that of a benchmark's best load, where batches hold four rows."""
        factor = cpu_ms / self.cpu_ms(4)
        steps = {
            name: StepCost(fixed_ms=cost.fixed_ms * factor, row_ms=cost.row_ms * factor)
            for name, cost in self.steps.items()
        }
        return dataclasses.replace(
            self, steps=steps, front_ms=self.front_ms * factor, idle_ms=self.idle_ms * factor
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What a step's config.pbtxt says.

    num_joined   rows that one execution takes from the queue at most
    queue_size   requests that may wait; 0: no bound
    timeout_s    that a request may wait; 0: no limit
    """

    name: str
    num_instances: int
    num_joined: int
    queue_size: int = 0
    timeout_s: float = 0.0
    weight: float = WEIGHT

    @property
    def is_staged(self) -> bool:
        """Whether a free instance looks at the queue; else an arrival or 500 ms do (docs/triton.md, 18)."""
        return not self.queue_size and not self.timeout_s


def load_costs(path: Path) -> Costs:
    """Read what `save_costs` wrote. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: not found. Measure first: python -m bench.scale --calibrate")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Costs)
    except msgspec.MsgspecError as error:
        raise UserError(f"{path}: {error}. Measure again: python -m bench.scale --calibrate") from None


def save_costs(costs: Costs, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(costs), indent=2) + "\n", "utf-8")


def cpu_ms_of_bench(path: Path, pair: str = "quickstart") -> float:
    """CPU milliseconds of an item at the ensemble's best load, from bench.json. Raises UserError."""
    try:
        rows = json.loads(path.read_text("utf-8"))[pair]["measurements"]
        ours = [row for row in rows if row["system"].startswith("ensemble")]
        return float(max(ours, key=lambda row: row["items_per_s"])["server_cpu_ms"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no measurements of {pair} ({error!r}). Make it: make bench") from None


def read_plans(repository: Path, settings: Settings) -> list[StepPlan]:
    """The steps in the order of the ensemble, from their configs with these settings. Raises UserError."""
    return [_read_plan(repository / name / CONFIG_FILE, settings) for name in STEPS]


def _read_plan(path: Path, settings: Settings) -> StepPlan:
    text = edit_config(path.read_text("utf-8"), settings, path)

    def number(pattern: str) -> int:
        found = re.search(pattern, text, re.MULTILINE)
        return int(found[1]) if found else 0

    name = path.parent.name
    return StepPlan(
        name=name,
        num_instances=number(r"^instance_group \[ \{ count: (\d+)"),
        num_joined=number(r"^ +preferred_batch_size: \[(\d+)") or number(r"^max_batch_size: (\d+)"),
        queue_size=number(r"^ +max_queue_size: (\d+)"),
        timeout_s=number(r"^ +default_timeout_microseconds: (\d+)") / 1e6,
        weight=NICED_WEIGHT if name == "preprocess" else WEIGHT,
    )
