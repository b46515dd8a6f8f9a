"""The commands of docker/README.md and docker/kubernetes/README.md, run as they are written.

What needs an engine or a cluster goes to cluster_standins.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diptych.runs.run import Run
from tests.helpers import cluster_standins
from tests.helpers.kubernetes_manifests import KUBERNETES, Manifest, kinds, pod_of, render, serving_of, the

ROOT = Path(__file__).parents[2]
TEN, ONE_MACHINE = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docker/README.md").read_text(), re.M | re.S)
CLUSTER = (KUBERNETES / "README.md").read_text()
YAML_BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", CLUSTER, re.M | re.S)
NEEDS_KUBECTL = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout under its usual name, whose build/ and neighbours are the test's own."""
    checkout = tmp_path / "diptych"
    checkout.mkdir()
    for name in ("docker", "Makefile", "VERSION", "pyproject.toml", "training", "serving", "client"):
        (checkout / name).symlink_to(ROOT / name)
    return checkout


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Stand-ins first; then this environment's `diptych`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("docker", "kubectl"):
        program = programs / name
        program.write_text(f"#!{sys.executable}\n" + Path(cluster_standins.__file__).read_text())
        program.chmod(0o755)
    real_make = shutil.which("make")
    for name, body in {
        "sleep": "exit 0",
        "diptych-client": f'exec {Path(sys.executable).parent}/diptych-client "$@" --help > /dev/null',
        "make": f'exec {real_make} --dry-run "$@" > /dev/null',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    state = tmp_path / "standins"
    state.mkdir()
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "DIPTYCH_STANDINS": str(state),
        "DIPTYCH_REAL_KUBECTL": shutil.which("kubectl") or "",
    }


def run(script: str, checkout: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AssertionError" not in done.stderr, done.stderr  # of what runs in the background


@NEEDS_KUBECTL
def test_the_ten_commands_lead_from_a_run_to_a_pod_that_has_verified_its_release(
    checkout: Path, environment: dict[str, str], tiny_run: Run, tmp_path: Path
) -> None:
    (checkout / "runs").mkdir()
    (checkout / "runs/mine").symlink_to(tiny_run.directory)
    assert re.findall(r"# (\d+)(?:  |$)", TEN, re.MULTILINE) == [str(number) for number in range(1, 11)]
    run(TEN, checkout, environment)
    loaded = tmp_path / "standins/models"
    assert (loaded / "classifier/1/manifest.json").read_bytes() == (
        checkout / "build/mine/classifier/1/manifest.json"
    ).read_bytes()
    assert not (tmp_path / "standins/releases/.1").exists()


def test_the_commands_for_one_machine_name_targets_and_profiles_that_exist(
    checkout: Path, environment: dict[str, str]
) -> None:
    run(ONE_MACHINE, checkout, environment)


@NEEDS_KUBECTL
def test_the_commands_of_the_cluster_name_what_is_applied(
    checkout: Path, environment: dict[str, str]
) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", CLUSTER, re.M | re.S)
    assert len(blocks) == 4
    run("kubectl apply -k docker/kubernetes/overlays/gpu\n" + "".join(blocks), checkout, environment)


def the_only(manifests: list[Manifest], kind: str, prefix: str) -> str:
    """The name of the one object whose name starts so, and ends in a hash."""
    names = [each["metadata"]["name"] for each in manifests if each["kind"] == kind]
    (name,) = (name for name in names if name.startswith(prefix))
    return str(name)


def write(directory: Path, block: str, **more: object) -> Path:
    kustomization = {**yaml.safe_load(block), **more}
    directory.mkdir()
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return directory


@NEEDS_KUBECTL
def test_the_overlays_that_are_shown_build_from_beside_the_checkout(checkout: Path, tmp_path: Path) -> None:
    overlay, bucket, canary = YAML_BLOCKS
    mine = render(write(tmp_path / "mine", overlay))
    assert serving_of(pod_of(mine))["image"].startswith("registry.example.com/ml/diptych-serving@sha256:")

    kubernetes = f"../{checkout.name}/docker/kubernetes"
    stored = render(
        write(
            tmp_path / "stored",
            bucket,
            namespace="diptych",
            resources=[f"{kubernetes}/overlays/cpu"],
            components=[f"{kubernetes}/components/object-storage"],
        )
    )
    (fetch,) = pod_of(stored)["spec"]["initContainers"]
    name = fetch["envFrom"][0]["configMapRef"]["name"]
    assert the(stored, "ConfigMap", name)["data"]["BUCKET"] == "my-bucket/releases"
    assert name != the_only(render(KUBERNETES / "lint/everything"), "ConfigMap", "object-storage-")
    assert fetch["args"] == [":$(STORE):$(BUCKET)/$(RELEASE)"]
    assert "PersistentVolumeClaim" not in kinds(stored)

    split = render(write(tmp_path / "split", canary, resources=[f"{kubernetes}/overlays/kserve-runtime"]))
    predictor = the(split, "InferenceService", "classifier")["spec"]["predictor"]
    assert predictor["canaryTrafficPercent"] == 10
    assert predictor["model"]["storageUri"] == "s3://my-bucket/releases/2"


@NEEDS_KUBECTL
def test_a_copied_overlay_does_not_build_which_is_why_none_is_copied(tmp_path: Path) -> None:
    copied = shutil.copytree(KUBERNETES / "overlays/gpu", tmp_path / "mine")
    done = subprocess.run(["kubectl", "kustomize", copied], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "cp docker/kubernetes/overlays" not in TEN
