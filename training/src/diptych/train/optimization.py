"""The optimizer, and which epoch's weights are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from diptych.config.sections import TrainConfig
from diptych.models.classifier import Classifier
from diptych.train.partial import backbone_rates


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
    """AdamW with one learning rate for the rest, and one for backbones or for each of their blocks.

    Linear warm-up, then cosine to zero. Biases, norms and the learned vectors of absent modalities (all of
    them 1-d) are not decayed. Weights that need no gradient are left out.
    """
    if config.freeze_backbones:
        for encoder in (model.image_encoder, model.text_encoder):
            encoder.backbone.requires_grad_(False)
    rates = backbone_rates(model, config)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rates.get(name, config.lr), parameter.ndim > 1), []).append(parameter)
    optimizer = AdamW(
        [
            {"params": parameters, "lr": lr, "weight_decay": config.weight_decay if is_decayed else 0.0}
            for (lr, is_decayed), parameters in groups.items()
        ]
    )
    return optimizer, get_cosine_schedule_with_warmup(optimizer, round(config.warmup * num_steps), num_steps)
