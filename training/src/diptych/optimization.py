"""How weights are fitted: the training section of the config, and the optimizer that it describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from diptych.models.classifier import Classifier
from diptych.parallel import Precision

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Rate = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """freeze_backbones   train projections and fusion on embeddings that are computed once and cached
    freeze_batch_norm  keep the image backbone's pretrained mean and variance; small batches estimate worse
    batch_size         items of one optimizer step, over all processes and accumulated parts
    accumulate         parts of a step that are computed one after the other, to save memory
    warmup             share of all steps in which the learning rate rises before it falls
    drop_image         share of training items that lose their picture, so that its absence is learned;
                       1 trains on words alone
    drop_text          likewise for words
    alone_loss         weight of the loss of the picture alone, and of the words alone, beside that of the
                       item as it is. Backbones run once for all three
    balance            rare categories weigh more in the loss ('weights') or are drawn more often ('sampling')
    keep               the epoch whose weights are kept: the last, or the one with the lowest validation loss
                       or the highest validation macro-F1. docs/results.md compares them
    patience           epochs without better ones after which training ends; with keep = "last" there are none
    ema_decay          judge and keep an exponential moving average of the weights
    precision          'auto': bf16 where the hardware has it
    checkpoint_minutes how much work a kill can cost
    """

    epochs: Count = 10
    batch_size: Count = 32
    accumulate: Count = 1
    freeze_backbones: bool = False
    freeze_batch_norm: bool = False
    lr: Positive = 1e-3
    backbone_lr: Positive = 2e-5
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    warmup: Rate = 0.1
    label_smoothing: Rate = 0.0
    max_grad_norm: Positive = 1.0
    drop_image: Share = 0.15
    drop_text: Share = 0.15
    alone_loss: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    balance: Literal["none", "weights", "sampling"] = "none"
    keep: Literal["last", "val_loss", "val_macro_f1"] = "last"
    patience: Count | None = None
    ema_decay: Rate | None = None
    precision: Precision = "auto"
    checkpoint_minutes: Positive = 5.0
    num_workers: Annotated[int, msgspec.Meta(ge=0)] = 2

    def __post_init__(self) -> None:
        if self.patience and self.keep == "last":
            raise ValueError(
                f"`patience` is {self.patience} and `keep` is 'last': no epoch is better than another. "
                "Set `keep` to 'val_loss' or 'val_macro_f1', or leave `patience` out"
            )


def is_kept(scores: Mapping[str, float], history: Sequence[Mapping[str, float]], config: TrainConfig) -> bool:
    """Whether an epoch's weights take the place of all before it. Of equals the first stays.

    scores   what the epoch reached on the validation items
    history  the same of the epochs before it
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
