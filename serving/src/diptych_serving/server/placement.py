"""Whether a repository was exported for the kind of device that this machine has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from diptych_serving.errors import UserError
from diptych_serving.hardware import has_bf16_instructions, num_cores
from diptych_serving.repository.layout import ENSEMBLE, MANIFEST_FILE, config_of, serving_version
from diptych_serving.server.gpu import NoGpu, find_gpus, has_gpu

INSTANCES = re.compile(r"^instance_group \[ \{ count: (\d+)", re.MULTILINE)


def belongs_on_gpu(repository: Path) -> bool:
    """Whether it was exported for GPUs."""
    return _manifest(repository).get("target") == "gpu"


def require_hardware(repository: Path) -> None:
    """Refuse a repository for a GPU that is not here, or with 16-bit graphs that this CPU would only emulate,
    many times slower than fp32.

    tritonserver itself loads them without an error.
    """
    if belongs_on_gpu(repository):
        _require_gpu(f"{repository}: was exported for GPUs")
    for encoder, numbers in _manifest(repository).get("precision", {}).items():
        if numbers == "bf16" and not has_bf16_instructions() and not has_gpu():
            _refuse(repository, encoder, "bf16, and this machine's CPU has no bf16 instructions")
        if numbers == "fp16":
            try:
                find_gpus()
            except NoGpu as error:
                _refuse(repository, encoder, f"fp16, and this machine has no NVIDIA GPU to use: {error}")


def require_target(repository: Path, *, must_have_gpu: bool) -> None:
    """Refuse a repository that was exported for the other kind of device. Raises UserError.

    A repository for CPUs has an image encoder for each core and batches of four, which is slow on a GPU. Only
    containers are checked, because their device was chosen on purpose.
    must_have_gpu  also if the repository does not say what it was exported for
    """
    is_for_cpus = _manifest(repository).get("target") == "cpu"
    if is_for_cpus and (must_have_gpu or has_gpu()):
        cause = "--gpu required was given" if must_have_gpu else "there is a GPU here"
        raise UserError(
            f"{repository}: was exported for CPUs, and {cause}. Export for GPUs into a new directory: "
            "diptych export RUN --target gpu --to DIRECTORY. Or serve on the CPU: start the container "
            "without a GPU and without --gpu required."
        )
    if must_have_gpu:
        _require_gpu("--gpu required")
    require_hardware(repository)


def _require_gpu(cause: str) -> None:
    try:
        find_gpus()
    except NoGpu as error:
        raise UserError(f"{cause}, and there is none to use: {error}") from None


def describe_excess(repository: Path) -> str | None:
    """A warning if a CPU step has more instances than this machine has cores; else None.

    `diptych export` sets the number from the cores of its own machine.
    """
    cores = num_cores()
    steps = (
        ("preprocess",) if _manifest(repository).get("target") == "gpu" else ("preprocess", "image_encoder")
    )
    for step in steps:
        found = INSTANCES.search(config_of(repository, step).read_text("utf-8"))
        if found and int(found[1]) > cores:
            return (
                f"{repository}: {step} has {found[1]} instances, and there are {cores} cores here. They will "
                f"wait for each other, and each takes memory. Export for this machine: --cores {cores}"
            )
    return None


def _refuse(repository: Path, encoder: str, reason: str) -> None:
    raise UserError(
        f"{repository}: {encoder} computes in {reason}: it would run many times slower than fp32. "
        "Export for this machine: diptych export RUN --precision fp32 --to DIRECTORY"
    )


def _manifest(repository: Path) -> dict[str, Any]:
    """Of the version that serves; empty if there is none."""
    path = repository / ENSEMBLE / str(serving_version(repository)) / MANIFEST_FILE
    if not path.is_file():
        return {}
    manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return manifest
