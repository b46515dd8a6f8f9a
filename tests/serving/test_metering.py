"""What counting may cost: a count, and never a request. Triton's side of the metrics stands in here."""

from __future__ import annotations

import time
from typing import Any

import pytest

from diptych_serving.metering import ALIVE, MEMORY, Family, Meter

ARGS = {"model_name": "step", "model_version": "3", "model_instance_name": "step_0_1"}
FAMILIES = [Family("answers_total", "Answers.", "label", ("food", "tools")), Family("rows_total", "Rows.")]


class Metric:
    def __init__(self, wire: Wire, key: tuple[str, ...]) -> None:
        self.wire, self.key = wire, key
        wire.values[key] = 0.0

    def increment(self, value: float) -> None:
        self.set(self.wire.values[self.key] + value)

    def set(self, value: float) -> None:
        if self.wire.is_broken:
            raise RuntimeError("the shared memory is full")
        self.wire.values[self.key] = value


class Wire:
    """As much of pb_utils as a Meter uses."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.log: list[str] = []
        self.is_broken = False
        wire = self

        class MetricFamily:
            COUNTER, GAUGE = range(2)

            def __init__(self, *, name: str, description: str, kind: int) -> None:
                self.name = name

            def Metric(self, *, labels: dict[str, str]) -> Metric:
                return Metric(wire, (self.name, *sorted(labels.values())))

        class Logger:
            log_error = staticmethod(self.log.append)

        self.MetricFamily, self.Logger = MetricFamily, Logger


@pytest.fixture
def wire() -> Wire:
    return Wire()


def alive(wire: Wire) -> float:
    return wire.values[ALIVE, "3", "step", "step_0_1"]


def test_sums_reach_triton_at_the_latest_when_the_instance_ends(wire):
    meter = Meter(wire, ARGS, FAMILIES)
    for _ in range(3):
        meter.count(lambda rows: [("rows_total", "", rows), ("answers_total", "food", 1)], 4)
    meter.stop()
    assert wire.values["rows_total", "3"] == 12
    assert wire.values["answers_total", "3", "food"] == 3
    assert wire.values["answers_total", "3", "tools"] == 0  # there from the beginning
    assert wire.log == []


def test_an_instance_says_that_it_is_alive_and_that_it_ended_in_order(wire):
    meter = Meter(wire, ARGS)
    deadline = time.monotonic() + 30
    while not wire.values.get((ALIVE, "3", "step", "step_0_1")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert abs(time.time() - alive(wire)) < 30
    meter.stop()
    assert alive(wire) == 0


def test_one_step_reports_the_memory_of_its_parent_and_of_that_ones_children(wire):
    Meter(wire, ARGS, watches_memory=True).stop()
    assert wire.values[(MEMORY,)] > 2**20


def broken_count(*_: Any) -> list[tuple[str, str, float]]:
    raise ValueError("no such axis")


def test_a_count_that_fails_is_logged_once_and_those_after_it_are_made(wire):
    meter = Meter(wire, ARGS, FAMILIES)
    meter.count(broken_count)
    meter.count(broken_count)
    meter.count(lambda: [("rows_total", "", 1)])
    meter.stop()
    assert wire.log == ["step: metrics: ValueError: no such axis"]
    assert wire.values["rows_total", "3"] == 1


def test_a_value_that_no_family_lists_makes_no_series(wire):
    meter = Meter(wire, ARGS, FAMILIES)
    meter.count(lambda: [("answers_total", "what a caller wrote", 1)])
    meter.stop()
    assert set(wire.values) == {
        ("rows_total", "3"),
        ("answers_total", "3", "food"),
        ("answers_total", "3", "tools"),
        (ALIVE, "3", "step", "step_0_1"),
    }
    assert wire.log == ["step: metrics: KeyError: ('answers_total', 'what a caller wrote')"]


def test_where_triton_takes_no_metrics_counting_goes_on_in_silence(wire):
    wire.is_broken = True
    meter = Meter(wire, ARGS, FAMILIES)
    meter.count(lambda: [("rows_total", "", 1)])
    meter.stop()
    assert wire.log == ["step: metrics: RuntimeError: the shared memory is full"]
