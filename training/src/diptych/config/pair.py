"""What the directory of a pair says of its images: size, fit, mean and standard deviation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from diptych.config.sections import ImageConfig, PairConfig, TextConfig
from diptych.pretrained import LOADING_ERRORS, cannot_load, damage_of, hub_is_reachable
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import Fit, Resample

RESAMPLES: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def resolve_pair(pair: PairConfig, image: ImageConfig, text: TextConfig) -> tuple[ImageConfig, TextConfig]:
    """Both encoders' sections, with what preprocessor_config.json says of the images.

    raises  UserError where the file is missing, or has a rule that is not ours
    """
    name = f"pair.backbone '{pair.backbone}'"
    path = Path(pair.backbone)
    if path.is_dir() and (damage := damage_of(path / "preprocessor_config.json")):
        raise UserError(f"{name}: preprocessor_config.json {damage}")
    try:
        rule: Any = AutoImageProcessor.from_pretrained(
            pair.backbone,
            trust_remote_code=False,
            local_files_only=not (path.is_dir() or hub_is_reachable()),
        )
    except LOADING_ERRORS as error:
        raise UserError(cannot_load("pair", pair.backbone, error)) from error
    fit, size_px = _fit_of(rule, name)
    if image.size_px != size_px:
        raise UserError(f"image.size_px is {image.size_px}, and {name} takes {size_px}. Set it to {size_px}")
    if int(rule.resample) not in RESAMPLES or not (rule.do_normalize and rule.do_rescale):
        raise UserError(
            f"{name}: preprocessor_config.json has resample {rule.resample}, do_normalize "
            f"{rule.do_normalize}, do_rescale {rule.do_rescale}. Accepted: 2 or 3 (bilinear, bicubic), true, "
            "true"
        )
    return (
        dataclasses.replace(
            image,
            fit=fit if image.fit == "auto" else image.fit,
            resample=RESAMPLES[int(rule.resample)],
            mean=tuple(rule.image_mean),
            std=tuple(rule.image_std),
        ),
        dataclasses.replace(text, backbone=pair.backbone, weights=pair.weights),
    )


def _fit_of(rule: Any, name: str) -> tuple[Fit, int]:
    """How a processor brings images into their square, and its size in pixels."""
    size = {key: edge for key, edge in dict(rule.size or {}).items() if edge}
    crop = dict(rule.crop_size or {}) if getattr(rule, "do_center_crop", False) else {}
    edges = {*size.values(), *(edge for edge in crop.values() if edge)}
    if rule.do_resize and len(edges) == 1:
        if "height" in size:
            return "stretch", int(edges.pop())
        if "shortest_edge" in size and crop:
            return "crop", int(edges.pop())
    raise UserError(
        f"{name}: preprocessor_config.json resizes to {size} and crops to {crop or 'nothing'}. Accepted: one "
        "size for both, or a height and a width without a crop"
    )
