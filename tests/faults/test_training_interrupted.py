"""A run that was killed and goes on ends like one that never was; many processes like one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.config.loader import load_config
from diptych.runs.checkpoint import CHECKPOINT_FILE
from diptych.runs.directory import UNFINISHED
from diptych.train.train import train

END_TO_END = ["train.freeze_backbones=false", "train.epochs=3", "train.batch_size=8", "augment.pictures=true"]


def command(config: Path, out: Path, overrides: Sequence[str], *launcher: str) -> list[str]:
    settings = [part for override in overrides for part in ("--set", override)]
    return [
        sys.executable,
        *launcher,
        "-m",
        "diptych.cli",
        "train",
        str(config),
        "--out",
        str(out),
        *settings,
    ]


def largest_difference(first: Path, second: Path) -> float:
    left, right = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return max((left[name].double() - right[name].double()).abs().max().item() for name in left)


def test_a_run_killed_in_mid_epoch_and_resumed_ends_with_the_same_weights(
    tiny_config: Path, tmp_path: Path
) -> None:
    overrides = [*END_TO_END, "train.ema_decay=0.9", "train.accumulate=2", "train.balance=weights"]
    killed = tmp_path / "killed"
    checkpoint = killed / UNFINISHED / CHECKPOINT_FILE
    # Every step is saved, so that a kill finds one in mid-epoch to go on from.
    with subprocess.Popen(command(tiny_config, killed, [*overrides, "train.checkpoint_minutes=1e-9"])) as run:
        deadline = time.monotonic() + 120
        while run.poll() is None and time.monotonic() < deadline:
            if checkpoint.is_file() and 1 <= position_in(checkpoint)["step"] < 10:
                os.kill(run.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
    assert run.returncode == -signal.SIGKILL
    assert position_in(checkpoint)["step"] > 0
    assert not (killed / "model.safetensors").exists()

    train(load_config(tiny_config, [*overrides, "train.checkpoint_minutes=1e-9"]), killed)
    train(load_config(tiny_config, overrides), tmp_path / "whole")
    assert largest_difference(killed, tmp_path / "whole") == 0
    assert not (killed / UNFINISHED).exists()
    assert not (killed / CHECKPOINT_FILE).exists()


def position_in(checkpoint: Path) -> dict[str, int]:
    position: dict[str, int] = torch.load(checkpoint, weights_only=True)["position"]
    return position


def test_two_processes_end_like_one_with_the_same_global_batch(tiny_config: Path, tmp_path: Path) -> None:
    # Each process draws its own dropout, and batch norm would see half a batch: the comparison needs neither.
    overrides = ["train.freeze_backbones=false", "train.epochs=2", "train.precision=fp32"]
    overrides += ["image.backbone=timm:test_convnext"]
    overrides += [f"{section}.dropout=0" for section in ("image", "text", "fusion")]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    two = subprocess.run(
        command(tiny_config, tmp_path / "two", overrides, *launcher),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("accuracy") == 1  # one process evaluates and prints
    train(load_config(tiny_config, overrides), tmp_path / "one")
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")]
    for one, two in zip(*histories, strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["train"]["num_processes"] == 2
