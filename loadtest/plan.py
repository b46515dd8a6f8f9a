"""The shapes of a load, as phases: number of users, duration, and whether the objectives apply."""

from __future__ import annotations

import dataclasses
import math

from diptych_serving.errors import UserError

CONSTANT, STEP, SOAK, SPIKE = "constant", "step", "soak", "spike"
SHAPES = (CONSTANT, STEP, SOAK, SPIKE)
NUM_STEPS = 8
NUM_SOAK_PARTS = 5
SPIKE_FACTOR = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """is_judged  whether a breach of an objective in it fails the run"""

    name: str
    users: int
    duration_s: float
    is_judged: bool = True


def make_plan(shape: str, *, users: int, duration_s: float | None) -> list[Phase]:
    """`users` is the most at once. Only a constant load needs no duration.

    Raises UserError.
    """
    if shape == CONSTANT:
        return [Phase(name="constant", users=users, duration_s=duration_s or math.inf)]
    if not duration_s:
        raise UserError(f"--shape {shape} needs --run-time, the time for all of it, such as 2m")
    if shape == STEP:
        return _make_steps(users, duration_s)
    if shape == SOAK:
        return _make_soak(users, duration_s)
    return _make_spike(users, duration_s)


def _make_steps(users: int, duration_s: float) -> list[Phase]:
    """Equal steps up to more than the server can hold: only the knee is judged."""
    counts = sorted({math.ceil(users * step / NUM_STEPS) for step in range(1, NUM_STEPS + 1)})
    return [
        Phase(name=f"step {number}", users=count, duration_s=duration_s / len(counts), is_judged=False)
        for number, count in enumerate(counts, start=1)
    ]


def _make_soak(users: int, duration_s: float) -> list[Phase]:
    """One long load, judged in parts, so that slow growth shows."""
    ramp = Phase(name="ramp", users=math.ceil(users / 2), duration_s=0.1 * duration_s, is_judged=False)
    part_s = 0.9 * duration_s / NUM_SOAK_PARTS
    parts = range(1, NUM_SOAK_PARTS + 1)
    return [ramp, *(Phase(name=f"soak {part}", users=users, duration_s=part_s) for part in parts)]


def _make_spike(users: int, duration_s: float) -> list[Phase]:
    """Refusals during the spike and while the queues empty are no breach; later ones are."""
    base = math.ceil(users / SPIKE_FACTOR)
    return [
        Phase(name="before", users=base, duration_s=0.3 * duration_s),
        Phase(name="spike", users=users, duration_s=0.2 * duration_s, is_judged=False),
        Phase(name="recovery", users=base, duration_s=0.2 * duration_s, is_judged=False),
        Phase(name="after", users=base, duration_s=0.3 * duration_s),
    ]
