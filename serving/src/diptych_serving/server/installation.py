"""Finds a tritonserver on this machine. It starts nothing and writes nothing."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path

from diptych_serving.errors import UserError

ENVIRONMENT_VARIABLE = "DIPTYCH_TRITONSERVER"
CONTAINER_BINARY = Path("/opt/tritonserver/bin/tritonserver")
STUB = "triton_python_backend_stub"
NATIVE_PYTORCH = "pytorch/libtriton_pytorch.so"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Installation:
    """One tritonserver with the backends that came with it.

    `stub` runs Python models; `libraries` is what the dynamic linker needs besides the system's, or None.
    """

    binary: Path
    backends: Path
    stub: Path
    libraries: Path | None

    @property
    def has_native_pytorch(self) -> bool:
        return (self.backends / NATIVE_PYTORCH).is_file()


def find_installation(explicit: Path | None = None) -> Installation:
    """A given tritonserver, else an NVIDIA container's, else the wheel's."""
    if explicit is not None:
        return _at(explicit, "--tritonserver")
    if configured := os.environ.get(ENVIRONMENT_VARIABLE):
        return _at(Path(configured), ENVIRONMENT_VARIABLE)
    if CONTAINER_BINARY.is_file():
        return _at(CONTAINER_BINARY, "NVIDIA's container")
    package = importlib.util.find_spec("pytriton")
    if package is None or package.origin is None:
        raise UserError(
            f"no tritonserver found: not in {CONTAINER_BINARY}, and nvidia-pytriton is not installed. "
            "Install the one from PyPI (pip install 'diptych[embedded]', Python 3.10 to 3.12), work in "
            "NVIDIA's container, or name a binary with --tritonserver PATH."
        )
    return _at(Path(package.origin).parent / "tritonserver/bin/tritonserver", "nvidia-pytriton")


def _at(binary: Path, source: str) -> Installation:
    if not os.access(binary, os.X_OK) or binary.is_dir():
        raise UserError(f"{source}: {binary} is not an executable tritonserver")
    root = binary.resolve().parent.parent
    backends = root / "backends"
    if not (backends / "python/libtriton_python.so").is_file():
        raise UserError(
            f"{source}: {backends} has no Python backend, which the preprocessor needs. "
            "Use an image with it, such as nvcr.io/nvidia/tritonserver:YY.MM-py3."
        )
    stubs = root / "python_backend_stubs"
    if not stubs.is_dir():
        return Installation(binary=binary, backends=backends, stub=backends / "python" / STUB, libraries=None)
    stub = stubs / f"{sys.version_info.major}.{sys.version_info.minor}" / STUB
    if not stub.is_file():
        versions = ", ".join(sorted((path.name for path in stubs.iterdir()), key=lambda name: int(name[2:])))
        raise UserError(f"{source}: no stub for Python {stub.parent.name}; it has {versions}")
    libraries = root.parent.parent / "nvidia_pytriton.libs"
    return Installation(binary=binary, backends=backends, stub=stub, libraries=libraries)
