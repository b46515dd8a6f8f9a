"""The workflows for GitHub: what they say is valid, and they call what is here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TOOLS = Path(sys.executable).parent

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def steps(path: Path) -> list[dict]:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_there_are_two():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "gpu.yml"]


@each_workflow
def test_actionlint_has_nothing_to_say(path):
    command = [TOOLS / "actionlint", "-shellcheck", TOOLS / "shellcheck", path]
    environment = {**os.environ, "NO_COLOR": "1"}
    found = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stdout + found.stderr


@each_workflow
def test_actions_are_pinned_to_a_commit_and_tokens_may_only_read(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used)
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


@each_workflow
def test_every_make_target_that_is_called_exists(path):
    scripts = "\n".join(step.get("run", "") for step in steps(path))
    for target in re.findall(r"^make ([\w./-]+)", scripts, re.MULTILINE):
        command = ["make", "--dry-run", target]
        found = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        assert "No rule" not in found.stderr, target


def test_ci_runs_what_is_run_here():
    assert ".ci/run" in [step.get("run") for step in steps(ROOT / ".github/workflows/ci.yml")]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_gpu_job_comes_by_itself_and_only_where_a_runner_is_named():
    workflow = yaml.safe_load((ROOT / ".github/workflows/gpu.yml").read_text())
    assert workflow[True]["schedule"]  # YAML 1.1 reads `on` as true
    assert all("vars.GPU_RUNNER" in job["if"] for job in workflow["jobs"].values())
