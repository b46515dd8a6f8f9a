"""The benchmark's own arithmetic, its clock, and the peers' way of answering."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.peers.artefacts import Artefacts
from bench.speed.measure import Measurement, Outcome, Plan
from bench.speed.meter import Meter
from bench.speed.quiet import require_quiet
from bench.speed.results import print_results, save_results
from bench.speed.soak import Soak
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import InvalidInput
from diptych_serving.repository.settings import Settings
from tests.helpers.tiny_repository import LABELS, build_tiny_repository

PAUSE_S = 1.5


def measurement(system: str, load: str, items_per_s: float, server_cpu_ms: float) -> Measurement:
    return Measurement(
        system=system,
        load=load,
        items_per_s=items_per_s,
        lowest_items_per_s=0.9 * items_per_s,
        highest_items_per_s=1.1 * items_per_s,
        p50_ms=10.0,
        p95_ms=20.0,
        p99_ms=30.0,
        server_cpu_ms=server_cpu_ms,
        client_cpu_ms=1.0,
        memory_mib=100.0,
    )


@pytest.fixture
def outcome() -> Outcome:
    return Outcome(
        precision="fp32",
        others_load=[0.0, 0.05],
        settings=Settings.for_cores(2),
        measurements=[
            measurement("article", "batch 1", 10, 100),
            measurement("ceiling", "batch 8", 100, 18),
            measurement("ceiling", "batch 32", 110, 19),
            measurement("ensemble grpc", "1 callers", 20, 50),
            measurement("ensemble grpc", "8 callers", 80, 20),
            measurement("ensemble http", "8 callers", 70, 22),
            measurement("litserve, our graphs", "16 callers", 40, 30),
            measurement("fastapi, our graphs", "4 callers", 20, 60),
            measurement("litserve, eager", "16 callers", 16, 60),
            measurement("fastapi, eager", "4 callers", 10, 90),
        ],
        steady={"p50_ms": 20.0, "p99_ms": 50.0, "num_items": 100},
        soak=Soak(
            seconds=[1.0, 2.0], num_items=[80, 160], memory_mib=[100.0, 100.0], r_squared=1.0, growth_mib=0.0
        ),
    )


def test_the_ratios_are_those_of_the_best_loads(outcome: Outcome) -> None:
    assert outcome.ratios() == {
        "throughput_over_article": 8.0,
        "cpu_ms_ceiling_over_server": 0.9,
        "throughput_over_best_peer": 2.0,
        "throughput_over_best_documented_peer": 5.0,
        "p99_over_p50_at_70pct": 2.5,
    }


def test_a_busy_machine_is_named_and_its_results_are_marked(
    outcome: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A grandchild whose parent has ended is no child of this process.
    shell = ["sh", "-c", "\"$0\" -c 'while True: pass' >/dev/null & echo $!", sys.executable]
    pid = int(subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout)
    try:
        with pytest.raises(UserError, match=r"other processes use \d+\.\d cores: .+ \(\d+\), .+--noisy-ok"):
            require_quiet(is_noise_accepted=False)
    finally:
        os.kill(pid, signal.SIGKILL)
    noisy = dataclasses.replace(outcome, others_load=[0.0, 0.8])
    save_results({"quickstart": noisy}, Plan(), tmp_path)
    print_results({"quickstart": noisy})
    assert json.loads((tmp_path / "bench.json").read_text())["quickstart"]["is_quiet"] is False
    assert "NOT QUIET: other processes used up to 0.8 cores" in capsys.readouterr().out


def test_results_hold_the_promised_keys_the_hardware_and_the_versions(
    outcome: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_results({"quickstart": outcome}, Plan(), tmp_path)
    print_results({"quickstart": outcome})
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["quickstart"]["throughput_over_article"] == 8.0
    assert found["quickstart"]["settings"]["image_encoder_instances"] == 2
    assert found["measured"]["hardware"]["num_cores"] >= 1
    assert found["measured"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "throughput_over_best_peer            2.00" in capsys.readouterr().out
    for chart in ("bench.png", "soak.png"):
        assert (tmp_path / chart).stat().st_size > 10_000


def test_the_meter_counts_what_a_process_has_started_and_can_end_it_all() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    process = subprocess.Popen([sys.executable, "-c", child])
    meter = Meter(process.pid)
    try:
        deadline = time.monotonic() + 30
        while meter.cpu_s() < 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert meter.cpu_s() >= 0.3
        meter.suspend()
        asleep_s = meter.cpu_s()
        time.sleep(0.5)
        assert meter.cpu_s() == pytest.approx(asleep_s, abs=0.05)
    finally:
        meter.end()
    assert process.poll() is not None


def test_the_peers_serve_the_repositorys_own_files(tmp_path: Path) -> None:
    artefacts = Artefacts(build_tiny_repository(tmp_path / "model_repository"))
    probabilities = artefacts.classify([(b"", b"a red cat"), (b"", b"hammer")])
    assert probabilities.shape == (2, len(LABELS))
    assert probabilities.sum(1).tolist() == pytest.approx([1, 1])
    assert artefacts.labels == LABELS
    with pytest.raises(InvalidInput, match="found both empty"):
        artefacts.classify([(b"", b"cat"), (b"", b"")])
