"""The files of the serving image, and no others, start the real tritonserver, watch it and stop it.

The image itself is built and run by `make prove-images`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from image_layout import SERVING, lay_out
from serving_process import END_TIMEOUT_S, ServingProcess

from diptych.serving.installation import find_installation
from diptych_client import Client


@pytest.fixture
def python(tmp_path: Path) -> list[str]:
    """This Python with the image's files in place of every installed package (-S)."""
    lay_out(SERVING, tmp_path)
    environment = [f"PYTHONPATH={tmp_path}/opt/diptych", f"DIPTYCH_TRITONSERVER={find_installation().binary}"]
    return ["env", *environment, sys.executable, "-S"]


@pytest.fixture
def container(python: list[str], exported_repository: Path) -> Iterator[ServingProcess]:
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    entry_point = ["-m", "diptych.serving.container", "--host", "127.0.0.1", *ports, "--repository"]
    started = ServingProcess(exported_repository, command=[*python, *entry_point])
    yield started
    started.close()


def test_the_images_files_serve_are_found_healthy_and_end_with_status_0(container, python):
    container.wait_until_ready()
    with Client(container.url("gRPC")) as client:
        assert client.classify(text="a lamp").label in {"cold", "green", "warm"}

    http, metrics = (str(urlsplit(container.url(wire)).port) for wire in ("HTTP", "metrics"))
    ports = ["--http-port", http, "--metrics-port", metrics]
    health_check = [*python, "-m", "diptych.serving.healthcheck", "--ready", *ports]
    found = subprocess.run(health_check, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr

    container.process.terminate()
    assert container.process.wait(END_TIMEOUT_S) == 0, container.output()
    assert container.left_behind() == []

    found = subprocess.run(health_check, check=False, capture_output=True, text=True)
    assert found.returncode == 1
    assert "not ready" in found.stderr
