"""The Dockerfiles: linted, pinned, small; what they copy exists and suffices, and nothing else is sent."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

from tests.helpers.image_layout import DOCKER, ROOT, SERVING, SERVING_PACKAGES, copied, lay_out

DOCKERFILES = sorted(DOCKER.rglob("*Dockerfile"))
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def context() -> set[str]:
    """The files that an engine is sent, by .dockerignore's rules."""
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return {path for path in exclude_paths(str(ROOT), rules) if (ROOT / path).is_file()}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile):
    found = run(TOOLS / "hadolint", dockerfile)
    assert found.returncode == 0, found.stdout


def test_the_scripts_pass_shellcheck():
    found = run(TOOLS / "shellcheck", "--external-sources", *DOCKER.rglob("*.sh"), cwd=ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("dockerfile", sorted(DOCKER.glob("*Dockerfile")), ids=lambda path: path.name)
def test_an_image_is_pinned_labelled_and_never_root(dockerfile):
    text = dockerfile.read_text()
    bases = re.findall(r"^ARG \w+_IMAGE=(\S+)$", text, re.MULTILINE)
    assert bases
    assert all(re.search(r":[\w.-]*\d+\.\d+[\w.-]*$", base) for base in bases), bases
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "10001:10001"
    for label in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in text


def test_tritons_tag_is_written_once():
    tag = re.search(r"^ARG TRITON_IMAGE=\S+:(\S+)$", SERVING.read_text(), re.MULTILINE)[1]
    command = ["git", "grep", "--files-with-matches", "--fixed-strings", f"tritonserver:{tag}"]
    assert run(*command, cwd=ROOT).stdout.split() == ["docker/Dockerfile"]


def test_serving_has_the_versions_that_training_is_tested_with():
    constraints = (ROOT / "training/constraints.txt").read_text().splitlines()
    requirements = (DOCKER / "requirements/serving.txt").read_text()
    pins = re.findall(r"^(\S+==\S+) \\$", requirements, re.MULTILINE)
    assert [pin.partition("==")[0] for pin in pins] == SERVING_PACKAGES
    assert set(pins) <= {line.partition(" ;")[0] for line in constraints}
    assert requirements.count("--hash=sha256:") > len(pins)


def test_the_load_tests_requirements_are_all_pinned():
    pinned = {
        line.partition("==")[0] for line in (ROOT / "training/constraints.txt").read_text().splitlines()
    }
    lines = (DOCKER / "requirements/loadtest.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} <= pinned


@pytest.mark.parametrize("dockerfile", sorted(DOCKER.glob("*Dockerfile")), ids=lambda path: path.name)
def test_what_is_copied_exists_and_is_sent(dockerfile, context):
    for sources, _ in copied(dockerfile):
        for source in sources:
            assert any(path == source or path.startswith(f"{source.rstrip('/')}/") for path in context), (
                source
            )


def test_the_build_context_holds_nothing_that_git_does_not_know(context):
    known = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    assert context
    assert context <= set(known)


def test_the_build_context_is_small_and_free_of_tests_and_tools(context):
    assert sum((ROOT / path).stat().st_size for path in context) < 4 << 20
    assert not {path.partition("/")[0] for path in context} & {"tests", "bench", "docs", ".ci", ".github"}


@pytest.mark.parametrize("module", ["diptych_serving.container", "diptych_serving.healthcheck"])
def test_the_entry_points_import_nothing_that_the_serving_image_lacks(module, tmp_path):
    lay_out(SERVING, tmp_path)
    # -S: without this environment's packages. The image has a few more, which the entry points do not need.
    found = run(
        sys.executable,
        "-S",
        "-m",
        module,
        "--help",
        cwd=tmp_path,
        env={"PYTHONPATH": tmp_path / "opt/diptych"},
    )
    assert found.returncode == 0, found.stderr
    assert "usage:" in found.stdout


def test_the_load_test_runs_without_the_training_package(tmp_path):
    lay_out(DOCKER / "client.Dockerfile", tmp_path)
    packages = "{name.partition('.')[0] for name in sys.modules}"
    program = f"import loadtest.locustfile, sys; print({packages} & {{'diptych', 'torch'}})"
    environment = {"PYTHONPATH": str(tmp_path / "opt/diptych"), "PATH": "/usr/bin:/bin"}
    found = run(sys.executable, "-c", program, cwd=tmp_path, env=environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "set()"
