"""A real Prometheus from Debian's package, on the repository's own config, beside a server under test."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIG = Path(__file__).parents[2] / "docker/prometheus/prometheus.yml"
START_TIMEOUT_S = 60
QUERY_TIMEOUT_S = 30


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=QUERY_TIMEOUT_S) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant's series; raises where Prometheus cannot parse it."""
        return self.ask("query", query=expression)["result"]


@contextlib.contextmanager
def prometheus(metrics_url: str, directory: Path) -> Iterator[Prometheus]:
    """The shipped config with another target, and a second where it says 15: a test has no minutes."""
    if not shutil.which("prometheus"):
        pytest.skip("no prometheus (apt-get install prometheus)")
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    address = urllib.parse.urlsplit(metrics_url).netloc
    config["scrape_configs"][0]["static_configs"] = [{"targets": [address]}]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, directory / "prometheus.log")
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=5):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"Prometheus did not start: {log.read_text('utf-8')}")
        time.sleep(0.1)
