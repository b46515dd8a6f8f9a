"""Checks that /dev/shm has room for the tensors between tritonserver and the Python models' processes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from diptych_serving.errors import UserError
from diptych_serving.repository.layout import CONFIG_FILE, STEPS, loaded_versions, serving_version
from diptych_serving.server.leftovers import SHARED_MEMORY
from diptych_serving.server.placement import INSTANCES

MIB = 2**20
# Bytes that each process takes when it starts.
REGION_BYTES = MIB
# Encoded images; a phone's photo has 3 MiB, most images a tenth of that.
PICTURE_BYTES = MIB // 2
PYTHON_BACKEND = 'backend: "python"'
MAX_BATCH = re.compile(r"^max_batch_size: (\d+)", re.MULTILINE)


def require_shared_memory(repository: Path, *, has_native_pytorch: bool) -> None:
    """Refuse to start if the first full batch would not fit.

    has_native_pytorch  TorchScript then runs inside tritonserver and uses no shared memory
    """
    needed = needed_bytes(repository, has_native_pytorch=has_native_pytorch)
    found = os.statvfs(SHARED_MEMORY)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise UserError(
            f"{SHARED_MEMORY}: {free // MIB} MiB are free, and this repository's batches need "
            f"{-(-needed // MIB)} MiB there, to pass between tritonserver and its models. Give it more: "
            "docker run --shm-size=1g; in Kubernetes an emptyDir of medium Memory mounted there; elsewhere "
            f"mount -o remount,size=1g {SHARED_MEMORY}. Or start fewer instances, or smaller batches."
        )


def needed_bytes(repository: Path, *, has_native_pytorch: bool) -> int:
    """Bytes of one full batch in each process that may be working."""
    versions = len(loaded_versions(repository))
    pixels = _pixel_bytes(repository)
    per_row = {"preprocess": PICTURE_BYTES + pixels, "image_encoder": pixels}
    total = 0
    for step in STEPS:
        config = (repository / step / CONFIG_FILE).read_text("utf-8")
        if has_native_pytorch and PYTHON_BACKEND not in config:
            continue
        num_processes = int(INSTANCES.findall(config)[0])
        batch = int(MAX_BATCH.findall(config)[0]) * per_row.get(step, 0)
        # Of several versions only one works.
        total += num_processes * (versions * REGION_BYTES + batch)
    return total


def _pixel_bytes(repository: Path) -> int:
    """Bytes of one image, three for each pixel."""
    path = repository / "preprocess" / str(serving_version(repository)) / "preprocessing.json"
    return 3 * int(json.loads(path.read_text("utf-8"))["image_size_px"]) ** 2
