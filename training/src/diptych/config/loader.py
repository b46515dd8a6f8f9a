"""One tree of frozen dataclasses, read from TOML, with `--set section.key=value` on top.

`sections.py` defines the sections; this file joins, checks and saves them.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tomli_w

from diptych.config.sections import (
    AugmentConfig,
    DataConfig,
    FusionConfig,
    ImageConfig,
    LimitsConfig,
    TextConfig,
    TrainConfig,
)
from diptych.location import Location
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import PreprocessingSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole training run. The resolved tree is saved as RUN/config.toml."""

    data: DataConfig
    image: ImageConfig
    text: TextConfig
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    limits: LimitsConfig = dataclasses.field(default_factory=LimitsConfig)
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def spec(self) -> PreprocessingSpec:
        """How this run's items become tensors, within the limits of training."""
        spec = PreprocessingSpec(image_size_px=self.image.size_px, max_tokens=self.text.max_tokens)
        return spec.within(self.limits.training)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a TOML file. Relative paths in it are relative to the current directory; URLs stay."""
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Shipped configs are in training/configs/.") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _set(tree, override)
    _reject_unknown_keys(tree, Config, f"{path}", section="")
    try:
        return msgspec.convert(tree, Config, dec_hook=_decode_location)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from None


def save_config(config: Config, path: Path) -> None:
    """Write the resolved tree; `load_config` reads it back to an equal one."""
    tree = msgspec.to_builtins(config, enc_hook=str)
    path.write_text(tomli_w.dumps(_without_none(tree)), "utf-8")


def _set(tree: dict[str, Any], override: str) -> None:
    """Apply one `section.key=value`. The value is TOML; what is not valid TOML is a plain string."""
    name, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: expected section.key=value, such as train.epochs=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = name.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {override}: '{section}' is a value, not a section")
    tree[key] = value


def _reject_unknown_keys(tree: dict[str, Any], schema: type, where: str, section: str) -> None:
    types = typing.get_type_hints(schema)
    for key, value in tree.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            place = f"{where} [{section}]" if section else where
            raise UserError(f"{place}: unknown key '{key}'.{hint} Known keys: {', '.join(types)}")
        if dataclasses.is_dataclass(types[key]) and isinstance(value, dict):
            _reject_unknown_keys(value, typing.cast(type, types[key]), where, f"{section}.{key}".strip("."))


def _decode_location(expected: type, value: object) -> object:
    if expected is Location and isinstance(value, str):
        return Location.resolve(value)
    raise TypeError(f"expected a path or a URL, got {value!r}")


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: a key that is None is left out, and is None again when read."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }
