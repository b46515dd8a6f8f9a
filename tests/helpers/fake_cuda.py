"""Builds a libcuda.so.1 that answers as NVIDIA's driver would, for machines without a GPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = """
#include <string.h>
int cuInit(unsigned flags) {{ return {init_status}; }}
int cuDriverGetVersion(int *version) {{ *version = {cuda}; return 0; }}
int cuDeviceGetCount(int *count) {{ *count = {num_gpus}; return 0; }}
int cuDeviceGet(int *device, int index) {{ *device = index; return 0; }}
int cuDeviceGetName(char *name, int length, int device) {{ strncpy(name, "{name}", length); return 0; }}
int cuDeviceGetAttribute(int *value, int attribute, int device) {{
    if (attribute == 75) {{ *value = {major}; return 0; }}
    if (attribute == 76) {{ *value = {minor}; return 0; }}
    return 1;
}}
"""


def fake_driver(
    directory: Path,
    *,
    init_status: int = 0,
    cuda: int = 13000,
    num_gpus: int = 1,
    capability: tuple[int, int] = (8, 0),
) -> dict[str, str]:
    """The environment in which a new process finds this driver.

    init_status  what cuInit returns, a CUresult
    cuda         the newest CUDA that the driver runs, 1000 times the major and 10 times the minor version
    """
    directory.mkdir(exist_ok=True)
    source = directory / "cuda.c"
    major, minor = capability
    source.write_text(
        SOURCE.format(
            init_status=init_status,
            cuda=cuda,
            num_gpus=num_gpus,
            name="NVIDIA A100",
            major=major,
            minor=minor,
        )
    )
    library = directory / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    paths = [str(directory), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)}
