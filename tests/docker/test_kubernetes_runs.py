"""What docker/kubernetes runs, run here: init containers, the autoscaler's query, generated objects."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from diptych_serving.server.gpu import has_gpu
from tests.helpers.image_layout import SERVING
from tests.helpers.kubernetes_manifests import (
    KUBERNETES,
    Manifest,
    autoscaling_query,
    pod_of,
    recording_rules,
    render_overlay,
    serving_of,
    the,
)
from tests.helpers.repository_files import lay_out_repository


def entry_point() -> list[str]:
    """The image's, without NVIDIA's part of it."""
    (line,) = re.findall(r"^ENTRYPOINT (.+)$", SERVING.read_text(), re.MULTILINE)
    nvidias, *ours = json.loads(line)
    assert nvidias == "/opt/nvidia/nvidia_entrypoint.sh"
    return list(ours)


def run_container(container: Manifest, directories: Mapping[str, Path], *more: str) -> tuple[int, str]:
    """What it does, on this machine: other directories for those it mounts, and this Python."""
    command = container.get("command") or entry_point()
    words = [*command, *container.get("args", []), *more]
    for mounted, directory in directories.items():
        words = [re.sub(rf"(?<![\w/]){mounted}(?=/|$)", str(directory), word) for word in words]
    words = [sys.executable if word == "python3" else word for word in words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with one release."""
    releases = tmp_path_factory.mktemp("releases")
    lay_out_repository(releases / "1", target="gpu")
    return releases


def test_what_fetch_copies_is_what_the_server_accepts(release, tmp_path):
    pod = pod_of(render_overlay("cpu"))
    (fetch,) = pod["spec"]["initContainers"]
    fetch["args"] = [argument.replace("$(RELEASE)", "1") for argument in fetch["args"]]
    directories = {"/releases": release, "/models": tmp_path}
    assert run_container(fetch, directories, "--to", str(tmp_path))[0] == 0
    assert run_container(serving_of(pod), directories, "--check-only") == (0, "")


def test_the_gpu_overlay_refuses_to_serve_from_a_cpu(release):
    serving = serving_of(pod_of(render_overlay("gpu")))
    status, output = run_container(serving, {"/models": release / "1"}, "--check-only")
    assert has_gpu() == (status == 0)
    assert has_gpu() or "--gpu required" in output


def test_the_autoscaler_asks_for_recorded_series_of_the_monitored_pods():
    rendered = render_overlay("cpu")
    monitor = the(rendered, "PodMonitor")["metadata"]
    queries = [each["metadata"]["query"] for each in the(rendered, "ScaledObject")["spec"]["triggers"]]
    found = [set(re.findall(r"diptych:[a-z0-9_:]+", query)) for query in queries]
    assert found == [{"diptych:queue_us_per_request:rate1m"}, {"diptych:requests:rate1m"}]
    assert set.union(*found) <= set(recording_rules())
    for query in queries:
        assert set(re.findall(r'job="([^"]+)"', query)) == {f"{monitor['namespace']}/{monitor['name']}"}


def test_pods_with_a_gpu_scale_on_queue_time_alone_because_no_number_of_requests_is_known():
    (trigger,) = the(render_overlay("gpu"), "ScaledObject")["spec"]["triggers"]
    assert "diptych:queue_us_per_request:rate1m" in trigger["metadata"]["query"]


def test_without_traffic_the_autoscaler_sees_zero_and_without_the_series_nothing(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    (selector,) = set(re.findall(r"diptych:[a-z0-9_:]+\{[^}]*\}", autoscaling_query()))

    def case(values: str | None, value: float | None) -> dict[str, object]:
        return {
            "interval": "15s",
            "input_series": [{"series": selector, "values": values}] if values else [],
            "promql_expr_test": [
                {
                    "expr": autoscaling_query(),
                    "eval_time": "1m",
                    "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
                }
            ],
        }

    cases = [case("1 2 3 4 30000", 30000), case("NaN NaN NaN NaN NaN", 0), case(None, None)]
    path = tmp_path / "query.yml"
    path.write_text(yaml.safe_dump({"rule_files": [], "tests": cases}))
    done = subprocess.run(
        [promtool, "test", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_and_the_dashboard_are_those_of_docker():
    monitoring = KUBERNETES / "components/monitoring"
    generate = runpy.run_path(str(monitoring / "generate.py"))
    held = yaml.safe_load((monitoring / "prometheus-rule.yaml").read_text())
    assert held == generate["prometheus_rule"](), "docker/prometheus/rules has changed: make kubernetes-rules"
    dashboard = monitoring / "diptych.json"
    assert dashboard.read_bytes() == generate["DASHBOARD"].read_bytes(), "make kubernetes-rules"
    found = the(render_overlay("cpu"), "ConfigMap", "diptych-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
