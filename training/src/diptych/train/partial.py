"""Fine-tuning that fits larger backbones: their last blocks, rates by depth, LoRA, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from diptych.config.sections import TrainConfig
from diptych.models.classifier import Classifier
from diptych_serving.errors import UserError
from diptych_serving.progress import warn

CONTAINERS = (nn.Sequential, nn.ModuleList)


def choose_trained_weights(model: Classifier, config: TrainConfig) -> None:
    """Freeze what the config leaves as it is, and add what it trains in its place. Raises UserError."""
    backbones = _backbones(model)
    if config.lora_rank:
        counts = {name: add_lora(backbone, config.lora_rank) for name, backbone in backbones.items()}
        if not any(counts.values()):
            raise UserError("train.lora_rank: neither backbone has dense layers; set train.unfreeze_layers")
        for name in (name for name, count in counts.items() if not count):
            warn(f"train.lora_rank: the {name} backbone has no dense layers and stays as it is")
    for name, backbone in backbones.items():
        if config.unfreeze_layers:
            freeze_all_but_last(backbone, config.unfreeze_layers, name)
        if config.gradient_checkpointing and not config.freeze_backbones:
            checkpoint_gradients(backbone, name, is_on=True)


def make_plain(model: Classifier, config: TrainConfig) -> None:
    """Merge and remove what `choose_trained_weights` added: the model is as it was built, but trained."""
    for name, backbone in _backbones(model).items():
        if config.lora_rank:
            merge_lora(backbone)
        if config.gradient_checkpointing and not config.freeze_backbones:
            checkpoint_gradients(backbone, name, is_on=False)


def backbone_rates(model: Classifier, config: TrainConfig) -> dict[str, float]:
    """The learning rate of each weight of the backbones, by its name in the model; not of LoRA's."""
    rates = {}
    for kind, backbone in _backbones(model).items():
        depths = depths_of(backbone)
        last = max(depths.values(), default=0)
        for name, depth in depths.items():
            if ".lora_" not in name:
                rate = config.backbone_lr * config.layer_decay ** (last - depth)
                rates[f"{kind}_encoder.backbone.{name}"] = rate
    return rates


def freeze_all_but_last(backbone: nn.Module, num_blocks: int, name: str) -> None:
    """Train the last blocks and what comes after them. Raises UserError where no blocks are found."""
    depths = depths_of(backbone)
    last = max(depths.values(), default=0)
    if last == 0:
        raise UserError(f"train.unfreeze_layers: no blocks were found in the {name} backbone; leave it out")
    for parameter_name, parameter in backbone.named_parameters():
        parameter.requires_grad_(depths[parameter_name] > last - num_blocks)


def depths_of(backbone: nn.Module) -> dict[str, int]:
    """Of each parameter the number of its block, from 1; 0 before the first, as in embeddings and stems.

    What comes between or after blocks, such as a last norm, belongs to the block before it.
    """
    starts = tuple(f"{name}." for name in _block_names(backbone))
    depths, depth = {}, 0
    for name, _ in backbone.named_parameters():
        block = next((index for index, start in enumerate(starts, start=1) if name.startswith(start)), None)
        depth = block or depth
        depths[name] = depth
    return depths


def _block_names(module: nn.Module, prefix: str = "") -> list[str]:
    """The outermost modules of which several of one class follow one another, in order."""
    children = [(f"{prefix}{name}", child) for name, child in module.named_children()]
    classes = {type(child) for _, child in children}
    is_list = isinstance(module, CONTAINERS) and len(children) > 1 and len(classes) == 1
    if is_list and not issubclass(classes.pop(), CONTAINERS):
        return [name for name, child in children if any(True for _ in child.parameters())]
    return [block for name, child in children for block in _block_names(child, f"{name}.")]


def add_lora(backbone: nn.Module, rank: int) -> int:
    """Put low-rank additions beside its dense layers and freeze all else. Returns the number of layers."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise UserError("train.lora_rank: the package peft is missing: pip install 'diptych[lora]'") from None
    # Of this very class: attention of torch reads the weights of its own kind of dense layer by itself.
    layers = [name for name, module in backbone.named_modules() if type(module) is nn.Linear]
    backbone.requires_grad_(False)
    if layers:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), backbone)
    return len(layers)


def merge_lora(backbone: nn.Module) -> None:
    """Add the trained additions to their dense layers, which take their places again."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())


def checkpoint_gradients(backbone: nn.Module, name: str, *, is_on: bool) -> None:
    """Switch it in timm's or transformers' own way. Raises UserError where the backbone has none."""
    for module in backbone.modules():
        switch = getattr(module, "set_grad_checkpointing", None)
        try:
            if switch is not None:
                cast(Callable[[bool], None], switch)(is_on)
                return
            if isinstance(module, PreTrainedModel):
                _switch_transformers(module, is_on=is_on)
                return
        except (AssertionError, ValueError):  # how both say that a model has none
            break
    raise UserError(
        f"train.gradient_checkpointing: the {name} backbone does not support it; "
        "use one of timm or transformers that does, or leave it out"
    )


def _switch_transformers(model: PreTrainedModel, *, is_on: bool) -> None:
    """Under its name in newer releases, or in older ones."""
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if is_on:
        getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{word}_checkpointing_disable")()


def _backbones(model: Classifier) -> dict[str, nn.Module]:
    return {"image": model.image_encoder.backbone, "text": model.text_encoder.backbone}
