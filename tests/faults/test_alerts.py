"""Real faults on one real server, replayed to Prometheus: which alerts fire, and which stay silent.

A test has seconds where an alert needs half an hour of a fault. So each scenario is recorded as what every
series gained while it lasted. `promtool test rules` replays it: an hour of good traffic, then half an hour in
which each series gains the same again with every scrape.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from diptych_serving.metering import ALIVE, PERIOD_S
from diptych_serving.server import Server, ServerConfig, leftovers
from tests.helpers.raw_wire import Item, Refused, grpc_channel, infer
from tests.helpers.tiny_repository import SlowImageEncoder, build_tiny_repository, script_to, write_manifest

RULES = Path(__file__).parents[2] / "docker/prometheus/rules"
SCRAPE_S = 30  # twice that of prometheus.yml: promtool needs half the time
NUM_GOOD, NUM_FAULT = 3600 // SCRAPE_S, 1800 // SCRAPE_S
SAMPLE = re.compile(r"^((\w+)(?:\{.*\})?) (\S+)$", re.MULTILINE)
COUNTER = re.compile(r"^# TYPE (\w+) counter$", re.MULTILINE)
GOOD: Item = (b"", b"red cat")
BAD: Item = (b"no picture", b"red cat")
MAX_QUEUE_SIZE = 4
SHORT_TIMEOUT_US = 5_000
# How long requests wait depends on the machine: what an overload fires as well, or leaves behind it.
OF_WAITING = "DiptychQueueGrows|DiptychSlow"


@dataclasses.dataclass(frozen=True)
class Recording:
    """Of a scenario: each series' value at its end, and what it gained; and which metrics are counters."""

    values: dict[str, float]
    gains: dict[str, float]
    counters: set[str]

    def gain(self, pattern: str) -> float:
        return sum(gain for series, gain in self.gains.items() if re.search(pattern, series))

    def num_failed(self) -> float:
        return self.gain("request_failure.*classifier") / 2


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    repository = build_tiny_repository(tmp_path_factory.mktemp("alerts") / "model_repository")
    script_to(repository / "image_encoder/1/model.pt", SlowImageEncoder())
    for step, setting, value in (
        (
            "preprocess",
            "default_timeout_microseconds",
            30_000_000,
        ),  # good requests pass on a busy machine too
        ("image_encoder", "max_queue_size", MAX_QUEUE_SIZE),
    ):
        config = repository / step / "config.pbtxt"
        config.write_text(re.sub(rf"{setting}: \d+", f"{setting}: {value}", config.read_text()))
    write_manifest(repository)
    with Server(repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        recorded = dict(scenarios(server))
        server.kill()  # an orderly end waits half a minute for the process that is gone
    return recorded


def scenarios(server: Server) -> Iterator[tuple[str, Recording]]:
    before = scrape(server)
    ask(server, [[GOOD]] * 40, num_callers=2)
    yield "good", record(server, before)

    before = scrape(server)
    # More rows than a request may have is refused before any step sees it.
    ask(server, [[BAD], [GOOD, BAD, BAD, BAD], [BAD] * 4, [GOOD] * 33] * 10, num_callers=2)
    yield "bad inputs", record(server, before)

    before = scrape(server)
    ask(server, [[GOOD] * 8] * 60, num_callers=MAX_QUEUE_SIZE, timeout_us=SHORT_TIMEOUT_US)
    yield "long waits", record(server, before)

    before = scrape(server)
    # The preprocessor takes up to 32 rows together, so their requests reach the next queue together.
    ask(server, [[GOOD]] * 320, num_callers=64)
    yield "full queue", record(server, before)

    os.kill(stub_of(server, "text_encoder"), signal.SIGKILL)
    time.sleep(2 * PERIOD_S)  # what it said last
    before = scrape(server)
    ask(server, [[GOOD]] * 16, num_callers=2)
    yield "dead process", record(server, before)


def ask(
    server: Server, requests: list[list[Item]], *, num_callers: int, timeout_us: int | None = None
) -> None:
    with grpc_channel(server) as channel, ThreadPoolExecutor(num_callers) as pool:

        def one(items: list[Item]) -> None:
            with contextlib.suppress(Refused):
                infer(channel, "classifier", items, timeout_us=timeout_us)

        list(pool.map(one, requests))


def scrape(server: Server) -> tuple[dict[str, float], set[str]]:
    time.sleep(1.5 * PERIOD_S)  # until the steps' own counters have arrived
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        text = response.read().decode()
    return {series: float(value) for series, _, value in SAMPLE.findall(text)}, set(COUNTER.findall(text))


def record(server: Server, before: tuple[dict[str, float], set[str]]) -> Recording:
    values, counters = scrape(server)
    gains = {series: value - before[0].get(series, value) for series, value in values.items()}
    return Recording(values, gains, counters)


def stub_of(server: Server, model: str) -> int:
    (pid,) = (child.pid for child in leftovers.children_of(server.process.pid) if child.model == model)
    return pid


def replayed(series: str, good: Recording, fault: Recording) -> str:
    """The samples of one series in promtool's notation: an hour of good traffic, then the fault."""
    name = series.partition("{")[0]
    start, good_gain, gain = good.values.get(series, 0.0), 0.0, 0.0
    if name == ALIVE:  # seconds since 1970, where the replay begins
        start, good_gain, gain = 0.0, SCRAPE_S, SCRAPE_S if fault.gains[series] > 0 else 0.0
    elif name in fault.counters:
        start, good_gain, gain = 0.0, good.gains.get(series, 0.0), fault.gains[series]
    else:
        return f"{start}+0x{NUM_GOOD} {fault.values[series]}+0x{NUM_FAULT - 1}"
    middle = start + NUM_GOOD * good_gain + gain
    return f"{start}+{good_gain}x{NUM_GOOD} {middle}+{gain}x{NUM_FAULT - 1}"


def with_target(series: str) -> str:
    name, _, labels = series.partition("{")
    return f'{name}{{job="diptych", instance="a"' + (f", {labels}" if labels else "}")


def expect_firing(
    directory: Path, good: Recording, fault: Recording, alerts: set[str], *, leaving_out: str = ""
) -> None:
    """Evaluate every rule on the replay, and compare the alerts that fire at its end."""
    if not shutil.which("promtool"):
        pytest.skip("no promtool (apt-get install prometheus)")
    firing = f'group by (alertname) (ALERTS{{alertstate="firing", alertname!~"{leaving_out}"}})'
    case = {
        "interval": f"{SCRAPE_S}s",
        "input_series": [
            {"series": with_target(series), "values": replayed(series, good, fault)}
            for series in fault.values
        ]
        + [{"series": 'up{job="diptych", instance="a"}', "values": f"1+0x{NUM_GOOD + NUM_FAULT}"}],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": f"{(NUM_GOOD + NUM_FAULT - 1) * SCRAPE_S}s",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)
                ],
            }
        ],
    }
    path = directory / "replay.yml"
    rules = sorted(map(str, RULES.glob("*.yml")))
    path.write_text(
        yaml.safe_dump({"rule_files": rules, "evaluation_interval": f"{SCRAPE_S}s", "tests": [case]}), "utf-8"
    )
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_good_traffic_fires_nothing(recordings, tmp_path):
    good = recordings["good"]
    assert good.gain("nv_inference_request_success.*classifier") == 40
    expect_firing(tmp_path, good, good, set())


def test_an_overload_in_which_requests_wait_too_long_fires_that_they_are_refused(recordings, tmp_path):
    overload = recordings["long waits"]
    assert overload.num_failed() == overload.gain("request_failure.*REJECTED") > 4
    fired = {"DiptychRefuses", "DiptychBudgetBurnsFast", "DiptychBudgetBurns"}
    expect_firing(tmp_path, recordings["good"], overload, fired, leaving_out=OF_WAITING)


def test_an_overload_in_which_a_queue_is_full_fires_that_requests_are_refused(recordings, tmp_path):
    overload = recordings["full queue"]
    assert overload.num_failed() - overload.gain("request_failure.*REJECTED") > 4
    fired = {"DiptychRefuses", "DiptychBudgetBurnsFast", "DiptychBudgetBurns"}
    expect_firing(tmp_path, recordings["good"], overload, fired, leaving_out=OF_WAITING)


def test_a_dead_process_fires_that_it_is_dead_and_not_that_requests_are_refused(recordings, tmp_path):
    dead = recordings["dead process"]
    assert dead.gain("request_failure.*text_encoder.*BACKEND") == 16
    fired = {"DiptychDeadProcess", "DiptychAnswersNothing", "DiptychBudgetBurnsFast", "DiptychBudgetBurns"}
    expect_firing(tmp_path, recordings["good"], dead, fired, leaving_out=OF_WAITING)


def test_bad_inputs_fire_a_ticket_for_their_callers_and_burn_no_budget(recordings, tmp_path):
    bad = recordings["bad inputs"]
    assert bad.gain("diptych_rejected_inputs_total") == 10 * (1 + 3 + 4)
    assert bad.gain("diptych_rejected_requests_total") == 30
    expect_firing(tmp_path, recordings["good"], bad, {"DiptychRejectsInputs"})


def test_a_few_bad_requests_of_many_items_hide_no_failure(recordings, tmp_path):
    """A batch request of which each item is refused beside failing ones: items are not requests."""
    dead, bad = recordings["dead process"], recordings["bad inputs"]
    gains = {
        series: gain + (bad.gains[series] if series.partition("{")[0] in bad.counters else 0.0)
        for series, gain in dead.gains.items()
    }
    fired = {
        "DiptychDeadProcess",
        "DiptychAnswersNothing",
        "DiptychBudgetBurnsFast",
        "DiptychBudgetBurns",
        "DiptychRejectsInputs",
    }
    both = dataclasses.replace(dead, gains=gains)
    expect_firing(tmp_path, recordings["good"], both, fired, leaving_out=OF_WAITING)
