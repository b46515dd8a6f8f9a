"""One tree of frozen dataclasses, read from TOML, with `--set section.key=value` on top.

`sections.py` defines the sections; this file joins, checks and saves them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tomli_w

from diptych.config.sections import (
    PAIR,
    AugmentConfig,
    DataConfig,
    FusionConfig,
    ImageConfig,
    LimitsConfig,
    PairConfig,
    TextConfig,
    TrainConfig,
)
from diptych.location import Location
from diptych_serving.preprocessing import PreprocessingSpec
from diptych_serving.toml_file import load_toml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole training run. The resolved tree is saved as RUN/config.toml."""

    data: DataConfig
    pair: PairConfig | None = None
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    limits: LimitsConfig = dataclasses.field(default_factory=LimitsConfig)
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        """Raises ValueError where an encoder is named twice or not at all."""
        found = {"image.backbone": self.image.backbone, "text.backbone": self.text.backbone}
        if self.pair is None and (missing := [key for key, name in found.items() if name == PAIR]):
            raise ValueError(f"{' and '.join(missing)}: missing. Name it, or both encoders as pair.backbone")
        own = {
            key: name for key, name in found.items() if self.pair and name not in (PAIR, self.pair.backbone)
        }
        if own:
            key, name = next(iter(own.items()))
            raise ValueError(f"{key} is '{name}', and [pair] names both encoders. Leave one of them out")

    @property
    def spec(self) -> PreprocessingSpec:
        """How this run's items become tensors, within the limits of training."""
        spec = PreprocessingSpec(
            image_size_px=self.image.size_px,
            max_tokens=self.text.max_tokens,
            image_fit="pad" if self.image.fit == "auto" else self.image.fit,
            image_resample=self.image.resample,
        )
        return spec.within(self.limits.training)


def shipped_configs() -> dict[str, Path]:
    """The configs that come with Diptych, by name."""
    folder = Path(__file__).parents[1] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_config(name: Path) -> Path:
    """`name` where there is such a file, else the shipped config of that name, else `name`."""
    return name if name.is_file() else shipped_configs().get(str(name), name)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a TOML file, or a shipped config by its name.

    Relative paths in it are relative to the current directory; URLs stay. What a pair's directory says of its
    images is filled in; the config of a finished run has it already.
    """
    config = load_toml(
        find_config(path),
        Config,
        missing=f"Configs that come with Diptych: {', '.join(shipped_configs())}",
        overrides=overrides,
        decode=_decode_location,
    )
    if config.pair is None or config.image.mean is not None:
        return config
    from diptych.config.pair import resolve_pair  # it takes seconds to load, and few configs need it

    image, text = resolve_pair(config.pair, config.image, config.text)
    return dataclasses.replace(config, image=image, text=text)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved tree; `load_config` reads it back to an equal one."""
    tree = msgspec.to_builtins(config, enc_hook=str)
    path.write_text(tomli_w.dumps(_without_none(tree)), "utf-8")


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
