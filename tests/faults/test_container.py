"""The container's entry point, started as engines do: process 1 of a namespace, a /dev/shm of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.served import END_TIMEOUT_S, ServedProcess, wait_for
from diptych_client import Client, Tls
from diptych_serving.server import leftovers
from diptych_serving.server.gpu import has_gpu
from diptych_serving.traffic import outcomes
from tests.helpers.callers import calling, is_refused
from tests.helpers.certificates import make_certificates
from tests.helpers.fake_cuda import fake_driver
from tests.helpers.tiny_repository import build_tiny_repository

IN_NAMESPACES = [
    "unshare",
    "--pid",
    "--mount",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "private",
]
PORTS = ["--host", "127.0.0.1", *(f"--{wire}-port=0" for wire in ("http", "grpc", "metrics"))]


def command_of(*options: str, shm_mib: int = 256) -> list[str]:
    """What the image's ENTRYPOINT runs; the repository is to be its last argument."""
    entry = [sys.executable, "-m", "diptych_serving.container", *PORTS, *options, "--repository"]
    mount = f'mount -t tmpfs -o size={shm_mib}m tmpfs /dev/shm && exec "$@"'
    return [*IN_NAMESPACES, "sh", "-c", mount, "sh", *entry]


class Container(ServedProcess):
    """Signals go to process 1 inside, past `unshare`."""

    def first_process(self) -> int:
        (child,) = leftovers.children_of(self.process.pid)
        return child.pid

    def triton_pid(self) -> int:
        children = [child.pid for child in leftovers.children_of(self.first_process()) if not child.is_zombie]
        (pid,) = (pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "tritonserver\n")
        return pid

    def probe(self, *options: str) -> subprocess.CompletedProcess[str]:
        """The image's HEALTHCHECK."""
        ports = [
            f"--{wire.lower()}-port={self.url(wire).split(':')[2].split('/')[0]}"
            for wire in ("HTTP", "metrics")
        ]
        command = [sys.executable, "-m", "diptych_serving.healthcheck", "--timeout=30", *ports, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def container(exported_repository: Path) -> Iterator[Container]:
    with Container(exported_repository, command=command_of()) as started:
        started.wait_until_ready()
        yield started


def workspaces(container: Container) -> list[Path]:
    namespace = os.readlink(f"/proc/{container.first_process()}/ns/pid").strip("pid:[]")
    return leftovers.files_of(f"diptych-{namespace}-1-")


def test_it_is_well_reaps_orphans_drains_on_sigterm_and_leaves_nothing(container: Container) -> None:
    first = container.first_process()
    for options in ((), ("--ready",)):
        assert container.probe(*options).returncode == 0
    orphan = "sleep 0.5 & echo $!"
    subprocess.run(["nsenter", f"--target={first}", "--pid", "--mount", "sh", "-c", orphan], check=True)
    assert wait_for(lambda: len(leftovers.children_of(first)) == 1)  # the server alone
    left = workspaces(container)
    assert len(left) == 1
    with calling([container.url("gRPC"), container.url("HTTP")], stops_at=is_refused) as traffic:
        assert traffic.wait_for_answers(50)
        os.kill(first, signal.SIGTERM)
        assert container.process.wait(END_TIMEOUT_S) == 0
    assert outcomes(traffic.calls).keys() == {"Answer", "ModelNotReady"}
    assert not any(path.exists() for path in left)
    assert "not alive: " in container.probe().stderr
    assert "not ready: " in container.probe("--ready").stderr


def test_a_dead_stub_ends_it_so_that_the_orchestrator_starts_it_again(container: Container) -> None:
    os.kill(container.stub_pids()["preprocess"], signal.SIGKILL)
    assert container.process.wait(END_TIMEOUT_S) == 1
    assert "tritonserver is unhealthy: " in container.output()
    assert "Not restarting here" in container.output()


def test_with_tls_every_probe_finds_it_and_other_options_of_tritonservers_reach_it(tmp_path: Path) -> None:
    pem = make_certificates(tmp_path / "pem")
    tls = [f"--tls-cert={pem / 'server.pem'}", f"--tls-key={pem / 'server.key'}"]
    more = ["--triton-option=--buffer-manager-thread-count=2", "--trace-url=http://127.0.0.1:9/v1/traces"]
    repository = build_tiny_repository(tmp_path / "models")
    with Container(repository, command=command_of(*tls, *more)) as started:
        started.wait_until_ready()
        assert started.url("HTTP").startswith("http://127.0.0.1:")
        for options in ((), ("--ready",), ("--loaded",)):
            found = started.probe(*options)
            assert found.returncode == 0, found.stderr
        with Client(
            f"grpcs://localhost:{started.url('gRPC').rpartition(':')[2]}", tls=Tls(pem / "ca.pem")
        ) as client:
            assert client.classify(text="a red cat").label in {"animals", "food", "tools"}
        command = Path(f"/proc/{started.triton_pid()}/cmdline").read_text().split("\0")
        assert "--buffer-manager-thread-count=2" in command
        assert "--trace-config=opentelemetry,url=http://127.0.0.1:9/v1/traces" in command
        # tritonserver's own log, from its first line on.
        assert "Started GRPCInferenceService" in started.output()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--triton-option=--http-port=1", "use the entry point's own --http-port"),
        ("--triton-option=--model-repository=/other", "use --repository"),
        ("--triton-option=--load-model=other", "the entry point sets it"),
        ("--triton-option=verbose", "expected an option of tritonserver"),
        ("--trace-url=collector:4317", "expected a collector that takes OTLP over HTTP"),
    ],
)
def test_options_that_would_contradict_the_entry_point_are_refused(
    tmp_path: Path, option: str, reason: str
) -> None:
    assert reason in refusal(tmp_path, option)


def refusal(repository: Path, *options: str, shm_mib: int = 256) -> str:
    command = [*command_of(*options, shm_mib=shm_mib), str(repository)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_half_copied_model_is_refused_before_anything_starts(
    exported_repository: Path, tmp_path: Path
) -> None:
    repository = shutil.copytree(exported_repository, tmp_path / "models")
    model = repository / "image_encoder/1/model.pt"
    subprocess.run([*command_of("--check-only"), repository], check=True)
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    for options in ((), ("--check-only",)):
        assert "image_encoder/1/model.pt: its SHA-256 is not the one in the manifest" in refusal(
            repository, *options
        )
    model.unlink()
    assert "image_encoder/1/model.pt: missing, though version 1 was exported with it" in refusal(repository)


def test_a_dev_shm_that_a_full_batch_does_not_fit_is_refused_with_the_way_out(
    exported_repository: Path,
) -> None:
    words = refusal(exported_repository, shm_mib=4)
    assert "/dev/shm: 4 MiB are free, and this repository's batches need " in words
    assert "docker run --shm-size=1g" in words


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, which is what is not to be there")
def test_a_required_gpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    repository = build_tiny_repository(tmp_path / "models", target="gpu")
    assert "--gpu required, and there is none to use: no NVIDIA driver" in refusal(
        repository, "--gpu=required"
    )


@pytest.mark.skipif(has_gpu(), reason="on this machine's GPU the models would be where they belong")
@pytest.mark.parametrize(
    "command",
    [
        command_of("--gpu=required"),
        command_of(),
        ["diptych", "serve", *PORTS[2:]],
    ],
    ids=["--gpu required", "--gpu auto", "diptych serve"],
)
def test_models_that_triton_put_on_the_cpu_end_what_is_to_serve_them_on_a_gpu(
    tmp_path: Path, command: list[str]
) -> None:
    # The driver has a GPU and is older than tritonserver's CUDA, whose version nothing tells the entry point
    # here: tritonserver finds no GPU, without an error, and takes the CPU.
    repository = build_tiny_repository(tmp_path / "models", target="gpu")
    driver = fake_driver(tmp_path / "cuda", cuda=11040)
    program = (
        [str(Path(sys.executable).parent / command[0]), *command[1:]] if command[0] == "diptych" else command
    )
    ended = subprocess.run(
        [*program, str(repository)], capture_output=True, text=True, check=False, env=driver
    )
    assert ended.returncode == 1
    assert (
        "the models belong on a GPU, and Triton has loaded them elsewhere: image_encoder is KIND_CPU, "
        "text_encoder is KIND_CPU, fusion_head is KIND_CPU. From its log:\n"
    ) in ended.stdout + ended.stderr
    assert "CUDA driver version is insufficient for CUDA runtime version" in ended.stdout + ended.stderr
    assert "Serving" not in ended.stdout
