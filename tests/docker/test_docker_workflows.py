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


def release_jobs() -> dict[str, dict]:
    return yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]


@pytest.mark.parametrize("job", ["distributions", "images"])
def test_what_is_released_has_a_cyclonedx_list_of_parts_and_signed_provenance(job):
    used = {
        step["uses"].partition("@")[0]: step["with"]
        for step in release_jobs()[job]["steps"]
        if "uses" in step
    }
    made = used["anchore/sbom-action"]
    assert made["format"] == "cyclonedx-json"
    assert used["actions/attest-sbom"]["sbom-path"] == made["output-file"]
    assert "actions/attest-build-provenance" in used
    permissions = release_jobs()[job]["permissions"]
    assert permissions["id-token"] == permissions["attestations"] == "write"


def test_an_image_is_scanned_before_anybody_can_pull_it():
    names = [
        step.get("name", step.get("uses", "").partition("@")[0]) for step in release_jobs()["images"]["steps"]
    ]
    assert names.index("Build") < names.index("anchore/scan-action") < names.index("Push")


def test_every_distribution_is_released():
    jobs = release_jobs()
    built = {one["name"]: one["source"] for one in jobs["distributions"]["strategy"]["matrix"]["include"]}
    assert set(built.values()) == {path.parent.name for path in ROOT.glob("*/pyproject.toml")}
    for name, source in built.items():
        project = (ROOT / source / "pyproject.toml").read_text()
        assert re.search(rf'^name = "{name}"$', project, re.MULTILINE)
    assert set(jobs["publish"]["strategy"]["matrix"]["name"]) == built.keys()


def test_no_workflow_holds_a_secret_of_its_own():
    for path in WORKFLOWS:
        assert "secrets." not in path.read_text(), path.name


def test_the_update_bot_looks_wherever_versions_are_pinned():
    path = ROOT / ".github/dependabot.yml"
    command = [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.dependabot", path]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    updates = yaml.safe_load(path.read_text())["updates"]
    watched = {
        (update["package-ecosystem"], directory)
        for update in updates
        for directory in update.get("directories") or [update["directory"]]
    }
    command = [
        "git",
        "ls-files",
        "*requirements*.txt",
        "*constraints.txt",
        "*pyproject.toml",
        "*/requirements/*.txt",
    ]
    files = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.split()
    directories = {f"/{Path(file).parent}" for file in files if "/" in file}
    assert {("pip", directory) for directory in directories} <= watched
    assert {("docker", "/docker"), ("github-actions", "/")} <= watched
