"""Rules, dashboard and runbook: what Prometheus says of them, and that they name one another rightly."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
RULES = sorted((DOCKER / "prometheus/rules").glob("*.yml"))
CASES = sorted((DOCKER / "prometheus/tests").glob("*.yml"))
DASHBOARDS = sorted((DOCKER / "grafana/dashboards").glob("*.json"))
ALERTS = [
    rule
    for path in RULES
    for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


def promtool(*arguments: str | Path) -> None:
    if not shutil.which("promtool"):
        pytest.skip("no promtool (apt-get install prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_config_and_the_rules():
    promtool("check", "config", DOCKER / "prometheus/prometheus.yml")
    promtool("check", "rules", *RULES)


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_each_alert_fires_where_it_must_and_nowhere_else(cases):
    promtool("test", "rules", cases)


def test_every_alert_has_cases_in_which_it_fires_and_in_which_it_does_not():
    seen: dict[str, set[bool]] = {}
    for path in CASES:
        for case in yaml.safe_load(path.read_text("utf-8"))["tests"]:
            for check in case["alert_rule_test"]:
                seen.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert seen == {alert["alert"]: {True, False} for alert in ALERTS}


def test_every_alert_leads_to_its_section_of_the_runbook_and_no_section_is_of_an_alert_that_is_gone():
    headings = re.findall(r"^### (Diptych\w+)$", (DOCKER / "RUNBOOK.md").read_text("utf-8"), re.MULTILINE)
    assert headings == [alert["alert"] for alert in ALERTS]
    for alert in ALERTS:
        assert alert["annotations"]["runbook_url"] == f"docker/RUNBOOK.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("page", "ticket")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_what_grafana_provisions(path):
    dashboard = json.loads(path.read_text("utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & covered, panel["title"]
        assert place["x"] + place["w"] <= 24
        covered |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["description"], panel["title"]
            assert all(target["expr"] and target["refId"] for target in panel["targets"])
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/diptych.yml").read_text("utf-8"))
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"
