"""How weights are fitted: the training section of the config, and the optimizer that it describes."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import msgspec
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from diptych.models.classifier import Classifier

Rate = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """freeze_backbones  train projections and fusion on embeddings that are computed once and cached
    drop_image, drop_text  share of training items that lose a modality, so that its absence is learned
    """

    epochs: Count = 10
    batch_size: Count = 32
    freeze_backbones: bool = False
    lr: Positive = 1e-3
    backbone_lr: Positive = 2e-5
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    warmup: Rate = 0.1
    label_smoothing: Rate = 0.0
    max_grad_norm: Positive = 1.0
    drop_image: Rate = 0.15
    drop_text: Rate = 0.15
    num_workers: Annotated[int, msgspec.Meta(ge=0)] = 2


def build_optimizer(model: Classifier, config: TrainConfig, num_steps: int) -> tuple[AdamW, LRScheduler]:
    """AdamW with one learning rate for backbones and one for the rest; linear warm-up, then cosine to zero.

    Biases, norms and the learned vectors of absent modalities (all of them 1-d) are not decayed.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        is_backbone = name.split(".")[1] == "backbone"
        if is_backbone and config.freeze_backbones:
            parameter.requires_grad_(False)
        else:
            groups.setdefault((is_backbone, parameter.ndim > 1), []).append(parameter)
    optimizer = AdamW(
        [
            {
                "params": parameters,
                "lr": config.backbone_lr if is_backbone else config.lr,
                "weight_decay": config.weight_decay if is_decayed else 0.0,
            }
            for (is_backbone, is_decayed), parameters in groups.items()
        ]
    )
    num_warmup = round(config.warmup * num_steps)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, num_warmup, num_steps)
