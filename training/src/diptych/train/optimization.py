"""The optimizer, and which epoch's weights are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from diptych.config.sections import TrainConfig
from diptych.models.classifier import Classifier


def is_kept(scores: Mapping[str, float], history: Sequence[Mapping[str, float]], config: TrainConfig) -> bool:
    """Whether an epoch's weights replace the earlier ones. Of equal epochs the first is kept.

    scores   the epoch's scores on the validation items
    history  scores of the earlier epochs
    """
    if config.keep == "last":
        return True
    sign = -1 if config.keep == "val_loss" else 1
    return all(sign * scores[config.keep] > sign * past[config.keep] for past in history)


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
    return optimizer, get_cosine_schedule_with_warmup(optimizer, round(config.warmup * num_steps), num_steps)
