"""Collects the timelines of all generating processes, and measures their CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NoReturn

import gevent
from locust.env import Environment

from loadtest.caller import Caller
from loadtest.timeline import Timeline

MESSAGE_KEY = "diptych"


class Recording:
    """One for each process. A worker's goes to the master with each report of Locust's statistics."""

    def __init__(self, environment: Environment) -> None:
        self.timeline = Timeline()
        self.caller: Caller | None = None  # in processes that generate load, while they do
        self._is_worker_busy: dict[str, bool] = {}
        environment.events.report_to_master.add_listener(self._add_to_report)
        environment.events.worker_report.add_listener(self._read_report)

    def is_idle(self) -> bool:
        """Whether no call is in flight, here or, as far as reported, at any worker."""
        is_idle_here = self.caller is None or not self.caller.num_in_flight
        return is_idle_here and not any(self._is_worker_busy.values())

    def watch_generator(self) -> NoReturn:
        """Once a second: the processor time of this process, gRPC's threads included."""
        cpu_s, clock_s = time.process_time(), time.monotonic()
        while True:
            gevent.sleep(1)
            cpu_before_s, clock_before_s = cpu_s, clock_s
            cpu_s, clock_s = time.process_time(), time.monotonic()
            cpu = (cpu_s - cpu_before_s) / (clock_s - clock_before_s)
            # This measures the second that has just ended.
            self.timeline.record_generator(now_s=time.time() - 0.5, cpu=cpu)

    def _add_to_report(self, client_id: str, data: dict[str, Any]) -> None:
        num_in_flight = self.caller.num_in_flight if self.caller else 0
        data[MESSAGE_KEY] = {"seconds": self.timeline.take(), "num_in_flight": num_in_flight}

    def _read_report(self, client_id: str, data: Mapping[str, Any]) -> None:
        report = data[MESSAGE_KEY]
        self.timeline.merge(report["seconds"])
        self._is_worker_busy[client_id] = bool(data["user_count"] or report["num_in_flight"])
