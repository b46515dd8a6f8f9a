"""Renders docker/kubernetes as `kubectl apply -k` would send it, and finds things in what comes out."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "docker/kubernetes"
OVERLAYS = ("cpu", "gpu", "kserve")

Manifest = dict[str, Any]


@functools.cache
def render(directory: Path) -> list[Manifest]:
    """Every object of one kustomization."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; 1.27 or later renders docker/kubernetes")
    command = [kubectl, "kustomize", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # what Kustomize deprecates
    return list(yaml.safe_load_all(done.stdout))


def render_overlay(name: str) -> list[Manifest]:
    return render(KUBERNETES / "overlays" / name)


def the(manifests: Sequence[Manifest], kind: str, name: str = "diptych") -> Manifest:
    """The one object of this kind and name."""
    found = [each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def kinds(manifests: Sequence[Manifest]) -> set[str]:
    return {each["kind"] for each in manifests}


def pod_of(manifests: Sequence[Manifest]) -> Manifest:
    """Labels and spec of the pod that serves, whoever makes it, as a Pod."""
    if "Deployment" in kinds(manifests):
        template = the(manifests, "Deployment")["spec"]["template"]
        labels, spec = template["metadata"]["labels"], template["spec"]
    else:
        spec = dict(the(manifests, "InferenceService", "classifier")["spec"]["predictor"])
        labels = spec.pop("labels")
        for name in ("minReplicas", "maxReplicas", "deploymentStrategy"):
            spec.pop(name)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "diptych", "labels": labels},
        "spec": spec,
    }


def serving_of(pod: Manifest) -> Manifest:
    """The container with the server."""
    (container,) = pod["spec"]["containers"]
    return container


def containers_of(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]


def walk(value: Any) -> Iterator[Any]:
    """Every mapping within, at any depth."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from walk(each)
    elif isinstance(value, list):
        for each in value:
            yield from walk(each)


def recording_rules() -> dict[str, str]:
    rule = the(render_overlay("cpu"), "PrometheusRule")
    rules = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    return {each["record"]: each["expr"] for each in rules if "record" in each}


def autoscaling_query() -> str:
    return the(render_overlay("cpu"), "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
