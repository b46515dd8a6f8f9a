"""Stands in for `docker` and `kubectl` where there is neither an engine nor a cluster, run under those names.

Each command does here what can be done here: manifests are rendered by the real kubectl and checked against
Kubernetes' schemas, what a container would run is run as a process, and every name must be of something that
an earlier command made. DIPTYCH_STANDINS is the directory that holds what was built, applied and loaded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

STATE = Path(os.environ.get("DIPTYCH_STANDINS", "."))
KUBECTL = os.environ.get("DIPTYCH_REAL_KUBECTL", "kubectl")
RELEASES, MODELS = STATE / "releases", STATE / "models"
KUBERNETES_VERSION = "1.30"
# By kubectl's short names.
KINDS = {
    "deployment": "Deployment",
    "service": "Service",
    "pod": "Pod",
    "scaledobject": "ScaledObject",
    "namespace": "Namespace",
}


def main() -> None:
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    for directory in (RELEASES, MODELS):
        directory.mkdir(exist_ok=True)
    docker(arguments) if name == "docker" else kubectl(arguments)


def docker(arguments: Sequence[str]) -> None:
    command, *rest = arguments
    images = STATE / "images"
    if command == "build":
        assert Path(rest[rest.index("--file") + 1]).is_file()
        with images.open("a") as file:
            file.write(rest[rest.index("--tag") + 1] + "\n")
    elif command == "push":
        assert rest[0] in images.read_text().split()
    elif command == "run":
        volume, image = rest[rest.index("--volume") + 1], rest[rest.index("--volume") + 2]
        assert image in images.read_text().split()
        host, inside = volume.removesuffix(":ro").split(":")
        run_module("container", rest[rest.index(image) + 1 :], {inside: host})
    elif command == "compose":
        services = yaml.safe_load(Path(rest[rest.index("--file") + 1]).read_text())["services"]
        profile = rest[rest.index("--profile") + 1]
        assert any(profile in service.get("profiles", []) for service in services.values())
    else:
        sys.exit(f"docker {command}: no stand-in")


def kubectl(arguments: Sequence[str]) -> None:
    if arguments[0] in ("-n", "--namespace"):
        assert arguments[1] == "diptych"
        arguments = arguments[2:]
    command, *rest = arguments
    if command == "apply":
        apply(*rest)
    elif command == "wait":
        find(rest[-1])
    elif command == "exec":
        find(f"pod/{rest[1]}")
        script = rest[rest.index("-c") + 1].replace("/releases", str(RELEASES))
        sys.exit(subprocess.run(["sh", "-c", script], check=False).returncode)
    elif command == "delete":
        find("/".join(rest))
    elif command == "rollout":
        found = find(rest[1])
        if rest[0] == "status":
            start(found["spec"]["template"]["spec"])
    elif command == "port-forward":
        ports = [port["port"] for port in find(rest[0])["spec"]["ports"]]
        assert int(rest[1].split(":")[1]) in ports
    elif command == "annotate":
        find("/".join(rest[:2]))
    elif command == "label":
        policy = next(each for each in applied() if each["kind"] == "NetworkPolicy")
        key, _, value = rest[2].partition("=")
        assert {"matchLabels": {key: value}} in [
            each.get("namespaceSelector") for rule in policy["spec"]["ingress"] for each in rule["from"]
        ]
    elif command not in ("get", "create"):
        sys.exit(f"kubectl {command}: no stand-in")


def apply(option: str, path: str) -> None:
    import kubernetes_validate  # slow, and no other command needs it

    text = Path(path).read_text() if option == "-f" else ""
    if option == "-k":
        text = subprocess.run([KUBECTL, "kustomize", path], check=True, capture_output=True, text=True).stdout
    for manifest in yaml.safe_load_all(text):
        if manifest["apiVersion"].partition("/")[0] in ("v1", "apps", "policy", "networking.k8s.io"):
            kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    with (STATE / "applied.yaml").open("a") as file:
        file.write(f"---\n{text}\n")


def applied() -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((STATE / "applied.yaml").read_text()) if each]


def find(name: str) -> dict[str, Any]:
    """What was applied under KIND/NAME."""
    kind, _, name = name.partition("/")
    found = [each for each in applied() if (each["kind"], each["metadata"]["name"]) == (KINDS[kind], name)]
    assert found, f"nothing was applied as {kind}/{name}"
    return found[-1]


def start(pod: Mapping[str, Any]) -> None:
    """What a pod's containers do until the server would listen."""
    (fetch,), (serving,) = pod["initContainers"], pod["containers"]
    (variable,) = fetch["env"]
    source = variable["valueFrom"]["configMapKeyRef"]
    values = next(each for each in applied() if each["metadata"]["name"] == source["name"])["data"]
    arguments = [each.replace(f"$({variable['name']})", values[source["key"]]) for each in fetch["args"]]
    places = {"/releases": RELEASES, "/models": MODELS}
    run_module("fetch", [*arguments, "--to", "/models", "--wait-s", "0"], places)
    arguments = [each for each in serving["args"] if not each.startswith("--gpu")]
    run_module("container", [*arguments, "--check-only"], places)


def run_module(module: str, arguments: Sequence[str], places: Mapping[str, object]) -> None:
    words = list(arguments)
    for inside, here in places.items():
        words = [re.sub(rf"^{inside}(?=/|$)", str(here), word) for word in words]
    done = subprocess.run([sys.executable, "-m", f"diptych_serving.{module}", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
