"""Writes prometheus-rule.yaml, which is docker/prometheus/rules as the Prometheus operator wants it, and
diptych.json, which is the dashboard of docker/grafana as it is.

Kustomize reads no file outside of its directory, and what is kept twice by hand would soon differ.
`make kubernetes-rules` runs this; tests/docker/test_kubernetes_runs.py knows when it was forgotten.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

HERE = Path(__file__).parent
RULES = HERE.parents[2] / "prometheus/rules"
RENDERED = HERE / "prometheus-rule.yaml"
DASHBOARD = HERE.parents[2] / "grafana/dashboards/diptych.json"
RENDERED_DASHBOARD = HERE / DASHBOARD.name
HEADER = "# Made of docker/prometheus/rules by `make kubernetes-rules`. Change it there.\n"


def prometheus_rule() -> dict[str, object]:
    """The object that holds every group of every file."""
    files = sorted(RULES.glob("*.yml"))
    groups = [group for path in files for group in yaml.safe_load(path.read_text("utf-8"))["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        # As on the PodMonitor.
        "metadata": {"name": "diptych", "labels": {"release": "prometheus"}},
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    text = yaml.safe_dump(prometheus_rule(), sort_keys=False, allow_unicode=True, width=10**9)
    RENDERED.write_text(HEADER + text, "utf-8")
    shutil.copyfile(DASHBOARD, RENDERED_DASHBOARD)
