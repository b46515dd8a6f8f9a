"""A release on a real server that is interrupted while models load: by SIGTERM, and by kill -9 of both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.served import ServedProcess, wait_for
from diptych_client import Client
from diptych_serving.release.control import Control
from diptych_serving.repository import journal
from diptych_serving.repository.layout import loaded_by_step, serving_version, sha256
from diptych_serving.server.supervisor import Restarts
from tests.helpers.releasing import contents

LOAD_S = 6


@pytest.fixture
def repository(releases: Path, tmp_path: Path) -> Path:
    """Version 2 takes seconds to load, as large models do."""
    repository = shutil.copytree(releases, tmp_path / "model_repository")
    source = repository / "tally/2/model.py"
    source.write_text(
        source.read_text().replace('"""Triton', f'import time\ntime.sleep({LOAD_S})\n"""Triton', 1)
    )
    manifest = repository / "classifier/2/manifest.json"
    tree = json.loads(manifest.read_text())
    tree["sha256"]["tally/2/model.py"] = sha256(source)
    manifest.write_text(json.dumps(tree))
    return repository


@pytest.fixture
def serving(repository: Path) -> Iterator[ServedProcess]:
    with ServedProcess(repository, restarts=Restarts(first_pause_s=0.1)) as started:
        started.wait_until_ready()
        yield started


def activate_until_tally_loads(repository: Path, url: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "diptych.cli",
        "release",
        "activate",
        str(repository),
        "2",
        "--server",
        url,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def is_loading() -> bool:
        with Control(url) as control:
            return ("fusion_head", 2) in control.loaded()

    assert wait_for(is_loading)
    assert process.poll() is None
    return process


def version_served(serving: ServedProcess) -> str:
    with Client(serving.url("gRPC")) as client:
        return client.classify(text="snow").model_version


def test_sigterm_and_kill_9_of_command_and_server_leave_the_old_version_serving(
    serving: ServedProcess, repository: Path
) -> None:
    url = serving.url("gRPC")
    before = contents(repository)

    stopped = activate_until_tally_loads(repository, url)
    stopped.terminate()
    output, _ = stopped.communicate()
    assert stopped.returncode == 128 + signal.SIGTERM, output
    assert "SIGTERM: ended in order" in output
    assert "version 1 serves, as before" in output
    assert contents(repository) == before
    with Control(url) as control:
        assert wait_for(lambda: control.loaded_versions() == {1})
    assert version_served(serving) == "1"

    killed = activate_until_tally_loads(repository, url)
    assert 2 in loaded_by_step(repository)["preprocess"]
    killed.kill()
    os.kill(serving.triton_pid(), signal.SIGKILL)
    killed.communicate()
    assert journal.read(repository)
    serving.wait_until_ready(num_starts=2)
    assert "`release activate` of version 2" in serving.output()
    assert "was interrupted. Undone: version 1 serves, as before." in serving.output()
    assert contents(repository) == before
    assert serving_version(repository) == 1
    assert version_served(serving) == "1"
