"""The README's own commands, in their order, with the tiny model's config and catalogues."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.served import ServedProcess
from tests.helpers.catalogues import write_picture
from tests.helpers.documents import ROOT, shell_blocks

TIMEOUT_S = 300
SERVE = ".venv/bin/diptych serve build/mine"
OWN_DATA, RELEASES = (block for block in shell_blocks(ROOT / "README.md") if ".venv/bin/diptych" in block)


@pytest.fixture(scope="module")
def checkout(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This environment as .venv, the tiny config in the place of the quickstart, and a user's files."""
    checkout = tmp_path_factory.mktemp("readme")
    (checkout / ".venv").mkdir()
    (checkout / ".venv/bin").symlink_to(Path(sys.executable).parent)
    config = checkout / "training/configs/quickstart.toml"
    config.parent.mkdir(parents=True)
    config.symlink_to(tiny_config)
    for split in ("train", "val", "test"):
        table = (tiny_config.parent / split / "items.csv").read_text()
        pictures = re.sub(r"^(?=\d+\.png)", f"{tiny_config.parent / split}/", table, flags=re.MULTILINE)
        (checkout / f"{split}.csv").write_text(pictures)
    (checkout / "catalogue.csv").symlink_to("test.csv")
    write_picture(checkout / "phone.png", "warm", 1)
    (checkout / "phone.png").rename(checkout / "phone.jpg")
    return checkout


def run(script: str, checkout: Path, url: str = "") -> str:
    """What the commands print. `url` stands for the address in the README."""
    done = subprocess.run(
        ["bash", "-eu", "-c", script.replace("grpc://127.0.0.1:8001", url)],
        cwd=checkout,
        env={**os.environ, "DIPTYCH_URL": url},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def served(checkout: Path) -> Iterator[ServedProcess]:
    """The commands up to `serve` have run, and the server is ready on ports of its own."""
    before, _ = OWN_DATA.split(SERVE)
    run(before, checkout)
    *command, repository = shlex.split(SERVE)
    ports = [part for kind in ("http", "grpc", "metrics") for part in (f"--{kind}-port", "0")]
    program = str(checkout / command[0])
    with ServedProcess(checkout / repository, command=[program, *command[1:], *ports]) as served:
        served.wait_until_ready()
        yield served


def test_own_data_become_a_model_that_answers(served: ServedProcess, checkout: Path) -> None:
    _, after = OWN_DATA.split(SERVE)
    assert re.search(r"\b(cold|green|warm)\b", run(after, checkout, served.url("gRPC")))
    assert json.loads((checkout / "runs/mine/metrics.json").read_text())["test"]["both"]
    assert (checkout / "runs/mine/report.html").is_file()
    assert (checkout / "scores.parquet").exists()


def test_a_release_is_activated_and_rolled_back(served: ServedProcess, checkout: Path) -> None:
    (checkout / "runs/better").symlink_to("mine")
    said = run(RELEASES, checkout, served.url("gRPC"))
    assert "version 2" in said
    assert "version 1" in said
