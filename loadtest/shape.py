"""Applies the plan to a running Locust, then lets the calls in flight end."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import ClassVar

from locust import LoadTestShape

from diptych_serving.errors import UserError
from loadtest.plan import Phase, make_plan


class PlannedShape(LoadTestShape):
    """--shape, with --users and --run-time as its size.

    started_at_s  start of the plan, on the wall clock
    is_idle       whether the last call has ended, in all processes
    """

    use_common_options: ClassVar[bool] = True

    plan: list[Phase]
    started_at_s: float
    is_idle: Callable[[], bool]

    def reset_time(self) -> None:
        super().reset_time()
        self.started_at_s = time.time()
        options = self._options()
        try:
            self.plan = make_plan(options.shape, users=options.num_users or 1, duration_s=options.run_time)
        except UserError as error:
            sys.exit(f"error: {error}")

    def tick(self) -> tuple[int, float] | None:
        left_s = time.time() - self.started_at_s
        spawn_rate = max(phase.users for phase in self.plan)  # all users of a phase at once
        for phase in self.plan:
            if left_s < phase.duration_s:
                return phase.users, spawn_rate
            left_s -= phase.duration_s
        is_over = self.is_idle() or left_s > self._options().timeout_s
        return None if is_over else (0, spawn_rate)

    def _options(self) -> argparse.Namespace:
        assert self.runner is not None  # Locust sets it
        assert self.runner.environment.parsed_options is not None
        return self.runner.environment.parsed_options
