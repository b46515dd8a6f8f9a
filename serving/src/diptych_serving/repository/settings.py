"""The few settings of a repository's configs that depend on the machine, kept in a small TOML file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import tomli_w

from diptych_serving.errors import UserError
from diptych_serving.hardware import num_cores
from diptych_serving.repository.files import read_text, replace_text
from diptych_serving.repository.layout import CONFIG_FILE, STEPS, TORCHSCRIPT
from diptych_serving.toml_file import load_toml

Count = Annotated[int, msgspec.Meta(ge=1, le=1024)]

ENCODERS = ("image_encoder", "text_encoder")
# The limit that docker/ sets: compose.yaml, kubernetes/components/gpu.
CORES_BESIDE_A_GPU = 8
# The timeout of a request in an encoder's bounded queue; a caller's own timeout can only shorten it.
TIMEOUT_US = 60_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """preprocess_instances, ..._instances  processes of each step
    encoder_threads       CPU threads of one encoder instance; fusion_head gets as many
    max_batch_size        most rows of a request, and of a batch in any step; at least 8, the warm-up's
    preferred_batch_size  rows of waiting requests that an encoder joins; 0: up to max_batch_size
    encoder_queue_size    requests that may wait for an encoder, others are refused; 0: no bound and no
                          timeout; see its config.pbtxt
    max_queue_delay_us    how long a step waits for its batch to fill, in microseconds
    precision             precision of the backbones, as in `diptych export --precision`
    """

    preprocess_instances: Count = 1
    image_encoder_instances: Count = 1
    text_encoder_instances: Count = 1
    encoder_threads: Count = 1
    max_batch_size: Annotated[int, msgspec.Meta(ge=8, le=256)] = 32
    preferred_batch_size: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    encoder_queue_size: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 256
    max_queue_delay_us: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"

    def __post_init__(self) -> None:
        if self.preferred_batch_size > self.max_batch_size:
            raise ValueError(
                f"preferred_batch_size {self.preferred_batch_size} is above "
                f"max_batch_size {self.max_batch_size}"
            )

    @classmethod
    def for_cores(cls, num_cores: int, *, on_gpu: bool = False) -> Settings:
        """Settings to start with on a machine with this number of cores; `diptych tune` searches for better
        ones.

        On CPUs the image encoder does most of the work in single-threaded instances, so it gets one for each
        core: with one instance on two cores, 40 items/s, with two 56. The other steps get fewer, because an
        idle instance still holds its copy of the weights. Batches are small: above a few rows the cost of a
        row stays the same, and new requests wait for the whole batch.

        On GPUs one instance of an encoder fills the GPU with batches, and the cores decode images.
        """
        if on_gpu:
            return cls(preprocess_instances=max(1, num_cores // 2))
        return cls(
            preprocess_instances=max(1, num_cores // 4),
            image_encoder_instances=num_cores,
            text_encoder_instances=max(1, num_cores // 2),
            preferred_batch_size=4,
            encoder_queue_size=0,
        )


def settings_for(target: str, cores: int | None) -> Settings:
    """The settings of a new repository.

    cores  CPU cores of the machine that will serve. Default: for CPUs those of this machine; for GPUs a fixed
           number, because another machine is likely to serve
    """
    if target == "gpu":
        return Settings.for_cores(cores or CORES_BESIDE_A_GPU, on_gpu=True)
    return Settings.for_cores(cores or num_cores())


def load_settings(path: Path) -> Settings:
    """Read a settings file. Raises UserError."""
    return load_toml(path, Settings, missing="Make one: diptych tune REPO")


def save_settings(settings: Settings, path: Path, comments: str) -> None:
    """Write them below comment lines that say where they come from."""
    header = "".join(f"# {line}\n" for line in comments.splitlines())
    path.write_text(f"{header}\n{tomli_w.dumps(dataclasses.asdict(settings))}", "utf-8")


def apply_settings(settings: Settings, repository: Path) -> None:
    """Write the settings into the configs of a repository; everything else in them stays, comments too."""
    texts = {path: read_text(path) for path in repository.glob(f"*/{CONFIG_FILE}")}
    for path, text in texts.items():
        replace_text(path, edit_config(text, settings, path))


def edit_config(text: str, settings: Settings, path: Path) -> str:
    """One config with other settings. Raises UserError if it is not written as in model_repository/."""
    model = path.parent.name
    values: dict[str, int | str] = {r"^(max_batch_size: )\d+": settings.max_batch_size}
    if model in STEPS:
        values[r"^(  max_queue_delay_microseconds: )\d+"] = settings.max_queue_delay_us
    if (instances := getattr(settings, f"{model}_instances", None)) is not None:
        values[r"^(instance_group \[ \{ count: )\d+"] = instances
    if model in TORCHSCRIPT:
        # LibTorch has one number for the whole process (docs/triton.md, 15).
        values[r'^(parameters \{ key: "INTRA_OP_THREAD_COUNT" value \{ string_value: ")\d+'] = (
            settings.encoder_threads
        )
    if model in ENCODERS:
        is_bounded = settings.encoder_queue_size > 0
        values[r"^(  preferred_batch_size: \[)\d*"] = settings.preferred_batch_size or ""
        values[r"^(    max_queue_size: )\d+"] = settings.encoder_queue_size
        values[r"^(    default_timeout_microseconds: )\d+"] = TIMEOUT_US if is_bounded else 0
        values[r"^(    allow_timeout_override: )\w+"] = str(is_bounded).lower()
    for pattern, value in values.items():
        text, count = re.subn(pattern, rf"\g<1>{value}", text, flags=re.MULTILINE)
        if count != 1:
            raise UserError(
                f"{path}: {count} lines match {pattern}; one is expected. "
                "Write it as in model_repository/, or set it by hand."
            )
    return text
