"""A real Prometheus scrapes the real server while Locust runs: no panel and no rule comes back empty."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from diptych.runs.run import Run
from diptych_serving.server import Server
from tests.helpers.prometheus import Prometheus, prometheus

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
CALLS_PER_S = 20
DATA_TIMEOUT_S = 120
# What cannot have data here, and why. All of it must still parse.
NEEDS_A_GPU = {"GPU", "GPU memory"}
NEEDS_HOURS = {"DiptychMemoryCreeps"}
NEEDS_A_FAULT = {"DiptychGone"}  # asks whether there is no server


def drawing():
    """docker/grafana/draw.py; docker/ is no package."""
    spec = importlib.util.spec_from_file_location("draw", DOCKER / "grafana/draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panels() -> list[tuple[str, str]]:
    dashboard = json.loads((DOCKER / "grafana/dashboards/diptych.json").read_text("utf-8"))
    fill_in = drawing().fill_in
    return [
        (panel["title"], fill_in(target["expr"], rate_interval="30s"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def rules() -> list[tuple[str, str]]:
    """Name and query of each; of alerts, what they compare, whatever comes out."""
    found = []
    for path in sorted((DOCKER / "prometheus/rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                name, query = rule.get("alert") or rule["record"], rule["expr"]
                found.append((name, as_bool(query) if "alert" in rule else query))
    return found


def as_bool(query: str) -> str:
    """A comparison leaves out what it does not hold for; with `bool` it says 0 instead."""
    return re.sub(r" (==|>|<|<=|>=) (?!0\))", r" \1 bool ", query)


@pytest.fixture(scope="module")
def watched(server: Server, tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus beside a server that Locust asks all kinds of items, and some that it must refuse."""
    directory = tmp_path_factory.mktemp("prometheus")
    with prometheus(server.metrics_url, directory) as running, load(server, tiny_run, directory):
        yield running


@contextlib.contextmanager
def load(server: Server, run: Run, results: Path) -> Iterator[None]:
    """The load test's own users and mix, headless, for as long as it is needed."""
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"]
    command += ["--host", server.grpc_url, "--users", str(CALLS_PER_S), "--run-time", "1h"]
    command += ["--catalogue", str(run.config.data.test_csv), "--results", str(results)]
    locust = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    try:
        while not said or "All users spawned" not in said[-1]:
            said.append(next(locust.stdout, ""))
            assert said[-1], f"Locust did not start: {''.join(said)}"
        yield
        assert locust.poll() is None, f"Locust ended early: {''.join([*said, *locust.stdout])}"
    finally:
        locust.terminate()
        locust.communicate()


def wait_for_data(watched: Prometheus, queries: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that still have none when the time is over."""
    deadline = time.monotonic() + DATA_TIMEOUT_S
    while True:
        queries = [(name, query) for name, query in queries if not watched.query(query)]
        if not queries or time.monotonic() > deadline:
            return queries
        time.sleep(1)


def test_every_panel_shows_something(watched):
    all_of_them = panels()
    assert {name for name, _ in all_of_them} >= NEEDS_A_GPU
    assert wait_for_data(watched, [entry for entry in all_of_them if entry[0] not in NEEDS_A_GPU]) == []
    for name, query in all_of_them:
        if name in NEEDS_A_GPU:
            assert watched.query(query) == []


def test_every_rule_looks_at_something(watched):
    without = NEEDS_HOURS | NEEDS_A_FAULT
    assert {name for name, _ in rules()} >= without
    assert wait_for_data(watched, [entry for entry in rules() if entry[0] not in without]) == []
    for name, query in rules():
        if name in without:
            assert watched.query(query) == []


def test_prometheus_evaluates_all_rules_without_an_error_and_none_fires(watched):
    groups = watched.ask("rules")["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in found} == {name for name, _ in rules()}
    assert [rule for rule in found if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in found if rule.get("state") == "firing"] == []


def test_the_dashboard_can_be_drawn_without_grafana(watched, tmp_path):
    drawing().draw(watched.url, tmp_path / "dashboard.png", rate_interval="30s", minutes=1)
    assert (tmp_path / "dashboard.png").read_bytes().startswith(b"\x89PNG")
