"""The files of the serving image, and no others, start the real tritonserver, watch it and stop it.

The image itself is built and run by `make prove-images`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.served import END_TIMEOUT_S, ServedProcess
from diptych_client import Client
from diptych_serving.repository.signing import load_private_key, sign_manifest
from diptych_serving.server.installation import find_installation
from tests.helpers.certificates import write_key_pair
from tests.helpers.image_layout import SERVING, lay_out, link_signature_packages


@pytest.fixture
def python(tmp_path: Path) -> list[str]:
    """This Python with the image's files in place of every installed package (-S)."""
    lay_out(SERVING, tmp_path)
    link_signature_packages(tmp_path / "opt/diptych")
    environment = [f"PYTHONPATH={tmp_path}/opt/diptych", f"DIPTYCH_TRITONSERVER={find_installation().binary}"]
    return ["env", *environment, sys.executable, "-S"]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """ours.key, with which the repository is signed, ours.pub and another.pub."""
    for name in ("ours", "another"):
        write_key_pair(tmp_path / name, Ed25519PrivateKey.generate())
    return tmp_path


@pytest.fixture
def signed(exported_repository: Path, keys: Path, tmp_path: Path) -> Path:
    repository = shutil.copytree(exported_repository, tmp_path / "models")
    sign_manifest(repository / "classifier/1/manifest.json", load_private_key(keys / "ours.key"))
    return repository


def entry_point(python: list[str], public_key: Path) -> list[str]:
    """What takes the repository as its last argument."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    options = ["--host", "127.0.0.1", *ports, "--require-signature", str(public_key), "--repository"]
    return [*python, "-m", "diptych_serving.container", *options]


@pytest.fixture
def container(python: list[str], signed: Path, keys: Path) -> Iterator[ServedProcess]:
    with ServedProcess(signed, command=entry_point(python, keys / "ours.pub")) as started:
        yield started


def test_what_another_has_signed_is_neither_verified_nor_served(python, signed, keys):
    command = [*entry_point(python, keys / "another.pub"), str(signed)]
    for options in ([], ["--check-only"]):
        found = subprocess.run([*command, *options], check=False, capture_output=True, text=True)
        assert found.returncode == 1
        assert "is not the signature of that manifest by the key in " in found.stderr
        assert "Traceback" not in found.stderr
    command = [*entry_point(python, keys / "ours.pub"), str(signed), "--check-only"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_images_files_serve_what_is_signed_are_found_healthy_and_end_with_status_0(container, python):
    container.wait_until_ready()
    with Client(container.url("gRPC")) as client:
        assert client.classify(text="a lamp").label in {"cold", "green", "warm"}

    http, metrics = (str(urlsplit(container.url(wire)).port) for wire in ("HTTP", "metrics"))
    ports = ["--http-port", http, "--metrics-port", metrics]
    health_check = [*python, "-m", "diptych_serving.healthcheck", "--ready", *ports]
    found = subprocess.run(health_check, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr

    container.process.terminate()
    assert container.process.wait(END_TIMEOUT_S) == 0, container.output()
    assert container.left_behind() == []

    found = subprocess.run(health_check, check=False, capture_output=True, text=True)
    assert found.returncode == 1
    assert "not ready" in found.stderr
