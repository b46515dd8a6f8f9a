"""Asks NVIDIA's driver, through its own library, which GPUs this process can compute on.

A device file is not enough: with a driver that is too old, CUDA finds no GPU, and Triton loads every model on
the CPU without an error. The driver names the reason before anything is loaded.

Standard library only.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os

from diptych_serving.errors import UserError
from diptych_serving.repository.layout import TORCHSCRIPT
from diptych_serving.server.probe import request

LIBRARY = "libcuda.so.1"
# The oldest GPUs that Triton's images support since 25.03, from their release notes.
MIN_CAPABILITY = (7, 5)
# Set in NVIDIA's images: the CUDA version that they are built on, such as 13.4.1.
CUDA_VERSION = "CUDA_VERSION"
# cuda.h: CUdevice_attribute.
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
ASK_TIMEOUT_S = 10.0
NAME_BYTES = 256
NO_DEVICE = 100
# cuda.h: the values of CUresult that an operator can act on.
HINTS = {
    NO_DEVICE: "the driver is there and shows no GPU: give the container one, and look at "
    "NVIDIA_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES",
    802: "the system is not ready: NVSwitch machines need nvidia-fabricmanager to run",
    803: "the driver's library and its kernel module are of different versions: restart the machine",
    804: "this GPU cannot use the image's newer driver library (forward compatibility is for data centre "
    "GPUs): install a newer driver on the machine",
}


class NoGpu(UserError):
    """No GPU can be used by this process; the message says why, and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """name        the driver's name for it
    capability  CUDA compute capability, such as (8, 0)
    """

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} (compute capability {_dotted(self.capability)})"


def find_gpus() -> list[Gpu]:
    """The GPUs that Triton will use. Raises NoGpu if there is none."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoGpu(
            f"no NVIDIA driver ({error}). Start the container with a GPU (docker run --gpus all; in "
            "Kubernetes a limit of nvidia.com/gpu)"
        ) from None
    _call(driver, "cuInit", 0)
    _require_recent_driver(driver)
    gpus = [_describe(driver, index) for index in range(_count(driver))]
    if not gpus:
        raise NoGpu(HINTS[NO_DEVICE])
    if not (usable := [gpu for gpu in gpus if gpu.capability >= MIN_CAPABILITY]):
        raise NoGpu(
            f"{', '.join(map(str, gpus))}: Triton's images need compute capability "
            f"{_dotted(MIN_CAPABILITY)} or later (Turing, such as T4, and newer)"
        )
    return usable


def has_gpu() -> bool:
    """Whether there is a GPU that this process can compute on."""
    try:
        return bool(find_gpus())
    except NoGpu:
        return False


def find_off_gpu(host: str, http_port: int) -> dict[str, str]:
    """The TorchScript models that a running server did not put on a GPU, and where each is."""
    found = {}
    for model in TORCHSCRIPT:
        _, body = request(host, http_port, "GET", f"/v2/models/{model}/config", ASK_TIMEOUT_S)
        kinds = {group["kind"] for group in json.loads(body).get("instance_group", [])}
        if kinds != {"KIND_GPU"}:
            found[model] = ", ".join(sorted(kinds)) or "nowhere"
    return found


def _require_recent_driver(driver: ctypes.CDLL) -> None:
    """Raise NoGpu if the driver's major CUDA version is too old. Minor versions do not matter."""
    wanted = os.environ.get(CUDA_VERSION, "")
    number = ctypes.c_int()
    _call(driver, "cuDriverGetVersion", ctypes.byref(number))
    found = (number.value // 1000, number.value % 1000 // 10)
    if wanted.partition(".")[0].isdecimal() and found[0] < int(wanted.partition(".")[0]):
        raise NoGpu(
            f"the NVIDIA driver is too old: it runs CUDA {_dotted(found)}, and this image is built on CUDA "
            f"{wanted}. Install a newer driver on the machine (CUDA 13: 580 or later), or start the image "
            "with NVIDIA's own entry point, which brings a newer driver library for data centre GPUs"
        )


def _count(driver: ctypes.CDLL) -> int:
    number = ctypes.c_int()
    _call(driver, "cuDeviceGetCount", ctypes.byref(number))
    return number.value


def _describe(driver: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    name = ctypes.create_string_buffer(NAME_BYTES)
    _call(driver, "cuDeviceGetName", name, NAME_BYTES, device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), CAPABILITY_MAJOR, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), CAPABILITY_MINOR, device)
    return Gpu(name=name.value.decode("utf-8", "replace"), capability=(major.value, minor.value))


def _call(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    try:
        function = getattr(driver, name)
    except AttributeError:
        raise NoGpu(f"{LIBRARY} has no {name}: it is not NVIDIA's driver library") from None
    status = function(*arguments)
    if status != 0:
        reason = HINTS.get(status, "NVIDIA's documentation of CUresult has its meaning")
        raise NoGpu(f"{name} of NVIDIA's driver failed with error {status}: {reason}")


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
