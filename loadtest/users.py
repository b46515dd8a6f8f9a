"""Locust's users: each makes calls over one protocol, at the times of its arrival model."""

from __future__ import annotations

import random
import time
from typing import ClassVar

import gevent
from locust import User, task

from loadtest.arrivals import CLOSED, Schedule
from loadtest.caller import Caller
from loadtest.payloads import PayloadSource
from loadtest.wires import GrpcWire, HttpWire


class ClassifierUser(User):
    """The class attributes are set when a test starts, before the first user."""

    abstract = True
    wire_type: ClassVar[type[GrpcWire] | type[HttpWire]]

    arrivals: ClassVar[str]
    source: ClassVar[PayloadSource]
    caller: ClassVar[Caller]
    randomness: ClassVar[random.Random]

    def on_start(self) -> None:
        self._call = self.caller.prepare(self.source.draw())
        self._schedule = None
        if self.arrivals != CLOSED:
            self._schedule = Schedule(self.arrivals, now_s=time.monotonic(), source=self.randomness)
            gevent.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Seconds until the next call is due; 0 if it is overdue."""
        return 0.0 if self._schedule is None else max(0.0, self._schedule.next_start_s - time.monotonic())

    @task
    def classify(self) -> None:
        if self._schedule is None:
            self.caller.run(self._call)
        else:
            self.caller.start(self._call, self._schedule.next_start_s)
            self._schedule.advance()
        self._call = self.caller.prepare(self.source.draw())


class GrpcUser(ClassifierUser):
    wire_type = GrpcWire


class HttpUser(ClassifierUser):
    wire_type = HttpWire


USER_CLASSES: dict[str, type[ClassifierUser]] = {"grpc": GrpcUser, "http": HttpUser}
