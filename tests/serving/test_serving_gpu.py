"""What NVIDIA's driver says about its GPUs, and what a container makes of it, with a driver of our own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diptych_serving import hardware
from diptych_serving.repository.settings import Settings, apply_settings, settings_for
from diptych_serving.server import placement
from diptych_serving.server.triton_log import describe_missing_gpu
from tests.helpers.fake_cuda import fake_driver
from tests.helpers.repository_files import lay_out_repository

TOO_OLD_DRIVER = (
    "E0101 00:00:00.1 7 cuda_driver_helper.cc:1] CudaDriverHelper has not been initialized.\n"
    "I0101 00:00:00.1 7 server.cc:1] no GPU in this line that is only for information\n"
    "W0101 00:00:00.1 7 metrics.cc:1] Unable to get number of CUDA devices: "
    "CUDA driver version is insufficient for CUDA runtime version\n"
)


def find_gpus(environment: dict[str, str], **more: str) -> str:
    """What a new process finds: the GPUs, or why there is none."""
    program = (
        "from diptych_serving.server.gpu import NoGpu, find_gpus\n"
        "try: print(*find_gpus(), sep=', ')\n"
        "except NoGpu as error: print('NoGpu:', error)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_gpu_is_found_with_its_name_and_its_capability(tmp_path: Path) -> None:
    driver = fake_driver(tmp_path / "cuda", capability=(7, 5))
    assert find_gpus(driver) == "NVIDIA A100 (compute capability 7.5)"
    assert find_gpus(driver, CUDA_VERSION="13.4.3.001") == "NVIDIA A100 (compute capability 7.5)"


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        ({"cuda": 12080}, "too old: it runs CUDA 12.8, and this image is built on CUDA 13.4.3"),
        (
            {"capability": (7, 0)},
            "NVIDIA A100 (compute capability 7.0): Triton's images need compute capability 7.5",
        ),
        ({"num_gpus": 0}, "the driver is there and shows no GPU"),
        (
            {"init_status": 100},
            "cuInit of NVIDIA's driver failed with error 100: the driver is there and shows no GPU",
        ),
        (
            {"init_status": 803},
            "error 803: the driver's library and its kernel module are of different versions",
        ),
        ({"init_status": 999}, "error 999: NVIDIA's documentation of CUresult has its meaning"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_not_there_and_the_driver_says_why(
    tmp_path: Path, driver: dict[str, int], reason: str
) -> None:
    found = find_gpus(fake_driver(tmp_path / "cuda", **driver), CUDA_VERSION="13.4.3")
    assert found.startswith("NoGpu: ")
    assert reason in found


def test_a_library_that_is_no_driver_is_named(tmp_path: Path) -> None:
    environment = fake_driver(tmp_path / "cuda")
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    subprocess.run(["gcc", "-shared", "-o", tmp_path / "cuda/libcuda.so.1", source], check=True)
    assert find_gpus(environment) == ("NoGpu: libcuda.so.1 has no cuInit: it is not NVIDIA's driver library")


@pytest.fixture(scope="module")
def for_gpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out_repository(tmp_path_factory.mktemp("gpu") / "model_repository", target="gpu")


def check(repository: Path, environment: dict[str, str], *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "diptych_serving.container", "--check-only", *options]
    done = subprocess.run(
        [*command, "--repository", str(repository)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_repository_for_gpus_passes_where_the_driver_is_new_enough_and_not_where_it_is_old(
    for_gpus: Path, tmp_path: Path
) -> None:
    assert check(for_gpus, fake_driver(tmp_path / "new"), "--gpu", "required") == (0, "")
    old = {**fake_driver(tmp_path / "old", cuda=12080), "CUDA_VERSION": "13.4.3"}
    status, message = check(for_gpus, old, "--gpu", "required")
    assert status == 1
    assert "--gpu required, and there is none to use: the NVIDIA driver is too old" in message
    # Its files can be checked on any machine.
    assert check(for_gpus, old) == (0, "")


def test_a_repository_for_cpus_is_refused_where_a_gpu_is_required(tmp_path: Path) -> None:
    repository = lay_out_repository(tmp_path / "models", target="cpu")
    status, message = check(repository, fake_driver(tmp_path / "cuda"), "--gpu", "required")
    assert status == 1
    assert "was exported for CPUs, and --gpu required was given" in message
    assert "diptych export RUN --target gpu --to DIRECTORY" in message


def test_lines_that_are_harmless_on_a_cpu_are_the_reason_where_a_gpu_is_missing() -> None:
    found = describe_missing_gpu(TOO_OLD_DRIVER).splitlines()
    assert [line.partition("] ")[2][:16] for line in found] == ["CudaDriverHelper", "Unable to get nu"]
    assert describe_missing_gpu("") == "its log says nothing about GPUs"


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_a_containers_limit_counts_as_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(f"{limit}\n")
    monkeypatch.setattr(hardware, "CPU_LIMIT", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert hardware.num_cores() == cores


def test_more_instances_than_cores_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = lay_out_repository(tmp_path / "models", target="cpu")
    apply_settings(Settings.for_cores(8), repository)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert "image_encoder has 8 instances, and there are 2 cores here" in str(
        placement.describe_excess(repository)
    )
    apply_settings(Settings.for_cores(2), repository)
    assert placement.describe_excess(repository) is None


def test_an_export_for_gpus_does_not_depend_on_the_cores_of_the_machine_that_exports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = settings_for("gpu", None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    assert settings_for("gpu", None) == usual == Settings.for_cores(8, on_gpu=True)
    assert settings_for("cpu", 4) == Settings.for_cores(4)


def test_every_torchscript_model_gets_the_same_number_of_threads(tmp_path: Path) -> None:
    repository = lay_out_repository(tmp_path / "models")
    apply_settings(Settings(encoder_threads=3), repository)
    line = re.compile(r'"INTRA_OP_THREAD_COUNT" value \{ string_value: "(\d+)"')
    found = {path.parent.name: line.findall(path.read_text()) for path in repository.glob("*/config.pbtxt")}
    assert {model: threads for model, threads in found.items() if threads} == {
        "image_encoder": ["3"],
        "text_encoder": ["3"],
        "fusion_head": ["3"],
    }
