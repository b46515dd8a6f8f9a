"""The probes of docker/kubernetes and the autoscaler's query, on a real server."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request

import pytest

from diptych_serving.repository.layout import ENSEMBLE, STEPS
from diptych_serving.server import Server
from tests.helpers.kubernetes_manifests import (
    autoscaling_query,
    pod_of,
    recording_rules,
    render_overlay,
    serving_of,
)


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_ready_server_answers(server: Server, probe: str) -> None:
    python, *command = serving_of(pod_of(render_overlay("cpu")))[probe]["exec"]["command"]
    assert python == "python3"
    ports = ["--http-port", str(server.ports.http), "--metrics-port", str(server.ports.metrics)]
    done = subprocess.run([sys.executable, *command, *ports], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_autoscaler_asks_for_metrics_that_a_real_server_exposes_for_every_step(server: Server) -> None:
    (series,) = set(re.findall(r"diptych:[a-z0-9_:]+", autoscaling_query()))
    expression = recording_rules()[series]
    metrics = set(re.findall(r"\bnv_\w+", expression))
    assert metrics == {"nv_inference_queue_duration_us", "nv_inference_request_success"}
    for models in set(re.findall(r'model=~"([^"]+)"', expression)):
        assert set(models.split("|")) == set(STEPS)  # never the ensemble, whose queue is always empty
    with urllib.request.urlopen(server.metrics_url, timeout=30) as response:
        exposed = response.read().decode()
    for metric in metrics:
        assert set(re.findall(rf'^{metric}{{model="(\w+)"', exposed, re.MULTILINE)) == {*STEPS, ENSEMBLE}
