"""Makes the optimizer steps, saves and restores checkpoints, keeps the best weights."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from diptych.config.sections import TrainConfig
from diptych.data.dataset import EmbeddedItems, ItemDataset, load_batches
from diptych.data.embedding_cache import embed_items_once
from diptych.data.items import Item
from diptych.models.classifier import Classifier, Embeddings, Inputs
from diptych.runs.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from diptych.runs.run import Run
from diptych.train.augmentation import AugmentedItems
from diptych.train.epochs import Epoch, MicroBatch, balancing_weights, num_steps, plan_epoch
from diptych.train.optimization import build_optimizer, is_kept
from diptych.train.partial import choose_trained_weights, make_plain
from diptych_serving.errors import UserError
from diptych_serving.progress import Advance, console


@dataclasses.dataclass(kw_only=True)
class Position:
    """The position of a run. `step` is the number of finished optimizer steps of `epoch`."""

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    num_correct: int = 0
    num_seen: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Trainer:
    """Trains run.model in place, alone or as one of several processes.

    fingerprint  of everything that the run depends on, for its checkpoints
    """

    def __init__(
        self, run: Run, items: Sequence[Item], accelerator: Accelerator, fingerprint: Mapping[str, str]
    ) -> None:
        self._run = run
        self._config = run.config.train
        self._accelerator = accelerator
        self._truth = torch.tensor([run.labels.index(item.category) for item in items])
        self._label_weights = balancing_weights(self._truth, len(run.labels))
        self._dataset = self._open(items)
        places = accelerator.num_processes * self._config.accumulate
        self.steps_per_epoch = num_steps(len(items), self._config.batch_size, places)
        choose_trained_weights(run.model, self._config)
        optimizer, self._schedule = build_optimizer(
            run.model, self._config, self.steps_per_epoch * self._config.epochs
        )
        self._model, self._optimizer = accelerator.prepare(run.model, optimizer)
        self._average = (
            AveragedModel(
                run.model, multi_avg_fn=get_ema_multi_avg_fn(self._config.ema_decay), use_buffers=True
            )
            if self._config.ema_decay
            else None
        )
        self._best_weights: dict[str, Tensor] = {}
        self._fingerprint = dict(fingerprint)
        self.position = Position()

    def _open(self, items: Sequence[Item]) -> ItemDataset | EmbeddedItems:
        if not self._config.freeze_backbones:
            return ItemDataset(items, self._run.labels, self._run.preprocessor)
        with self._accelerator.main_process_first():  # one embeds, the others find it in the cache
            embeddings = embed_items_once(
                self._run.model,
                items,
                self._run.preprocessor,
                title="training items",
                num_workers=self._config.num_workers,
            )
        return EmbeddedItems(embeddings, self._truth)

    @property
    def judged(self) -> Classifier:
        """The model to evaluate and keep: the averaged one, if there is one."""
        return cast(Classifier, self._average.module) if self._average else self._run.model

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or none of the last `patience` was better."""
        done = self.position.epoch - 1
        patience = self._config.patience
        return done >= self._config.epochs or bool(patience and done - self.position.best_epoch >= patience)

    def train_epoch(self, advance: Advance) -> None:
        """The rest of the current epoch, step by step."""
        position, accelerator, config = self.position, self._accelerator, self._config
        started, saved = time.perf_counter(), time.monotonic()
        weights = self._label_weights[self._truth] if config.balance == "sampling" else None
        epoch = plan_epoch(
            position.epoch, num_items=len(self._truth), seed=self._run.config.seed, weights=weights
        )
        parts = self._parts(epoch)
        self._model.train()
        freeze_batch_norm(self._run.model.image_encoder.backbone, frozen_only=not config.freeze_batch_norm)
        starts_step = True
        for part, (batch, truth) in zip(parts, self._load(epoch, parts), strict=True):
            if starts_step:
                self._seed_step()
            starts_step = part.ends_step
            self._fit(drop_modalities(batch, epoch.chance[part.items], config), truth, part)
            if not part.ends_step:
                continue
            self._require_finite(self._sum_over_processes(position.loss_sum), "loss")
            accelerator.clip_grad_norm_(self._model.parameters(), config.max_grad_norm)
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()
            if self._average:
                self._average.update_parameters(self._run.model)
            position.step += 1
            loss = position.loss_sum / position.num_seen
            advance(1, status=f"epoch {position.epoch}  loss {loss:.3f}")
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                position.seconds += time.perf_counter() - started
                started, saved = time.perf_counter(), time.monotonic()
                self.save()
        position.seconds += time.perf_counter() - started

    def _parts(self, epoch: Epoch) -> list[MicroBatch]:
        """This process's micro-batches, without the steps before an interruption."""
        parts = epoch.micro_batches(
            batch_size=self._config.batch_size,
            accumulate=self._config.accumulate,
            rank=self._accelerator.process_index,
            num_processes=self._accelerator.num_processes,
        )
        ends = [index for index, part in enumerate(parts, start=1) if part.ends_step]
        return parts[ends[self.position.step - 1] if self.position.step else 0 :]

    def _load(self, epoch: Epoch, parts: Sequence[MicroBatch]) -> Iterable[Any]:
        batches = [part.items for part in parts]
        if isinstance(self._dataset, EmbeddedItems):
            return DataLoader(self._dataset, sampler=batches, batch_size=None)
        augmented = AugmentedItems(
            self._dataset, self._run.config.augment, seed=epoch.seed, epoch=epoch.number
        )
        return load_batches(augmented, self._config.num_workers, batch_sampler=batches)

    def _fit(self, batch: Inputs | Embeddings, truth: Tensor, part: MicroBatch) -> None:
        """One forward and one backward pass."""
        position, accelerator = self.position, self._accelerator
        batch, truth = batch.to(accelerator.device), truth.to(accelerator.device)
        with contextlib.nullcontext() if part.ends_step else accelerator.no_sync(self._model):
            views = self._model(batch, each_alone=True)
            whole = self._loss_sum(views[0], truth)
            image_alone, text_alone = (
                self._loss_sum(logits[present], truth[present])
                for logits, present in zip(views[1:], (batch.image_present, batch.text_present), strict=True)
            )
            loss_sum = whole + self._config.alone_loss * (image_alone + text_alone)
            # Processes average their gradients, so a step's gradient is the mean over all its items.
            accelerator.backward(loss_sum * accelerator.num_processes / part.step_size)
        # This also finds a non-finite loss of one modality alone.
        position.loss_sum += whole.item() + 0 * loss_sum.item()
        position.num_correct += int((views[0].argmax(1) == truth).sum())
        position.num_seen += len(truth)

    def _loss_sum(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy, summed over items; 0 if there are none."""
        weight = self._label_weights.to(truth.device) if self._config.balance == "weights" else None
        smoothing = self._config.label_smoothing
        return F.cross_entropy(logits, truth, weight, label_smoothing=smoothing, reduction="sum")

    def _seed_step(self) -> None:
        """Seed dropout by the step, so that a resumed run is identical."""
        step = self.position.epoch * self.steps_per_epoch + self.position.step
        torch.manual_seed(
            (self._run.config.seed * 1_000_003 + step) * 1_009 + self._accelerator.process_index
        )

    def _sum_over_processes(self, value: float) -> float:
        """The sum over all processes, so that all decide the same."""
        if self._accelerator.num_processes == 1:
            return value
        mine = torch.tensor(value, dtype=torch.float64, device=self._accelerator.device)
        return float(self._accelerator.reduce(mine, reduction="sum").item())

    def _require_finite(self, loss: float, name: str) -> None:
        """Stop a run that has diverged, and delete its checkpoint: it would diverge again."""
        if math.isfinite(loss):
            return
        if self._accelerator.is_main_process:
            remove_checkpoint(self._run.directory)
        config = self._config
        rates = [f"train.lr, which is {config.lr:g}"]
        rates += [] if config.freeze_backbones else [f"train.backbone_lr, which is {config.backbone_lr:g}"]
        raise UserError(
            f"training diverged: the {name} is {loss} in epoch {self.position.epoch}; "
            f"lower {' or '.join(rates)}"
        )

    def finish_epoch(self, scores: dict[str, float]) -> None:
        """Record the epoch's scores, keep its weights if they are better, and save.

        raises  UserError if the validation loss is not finite
        """
        position = self.position
        self._require_finite(scores["val_loss"], "validation loss")
        sums = torch.tensor([position.loss_sum, position.num_correct, position.num_seen], dtype=torch.float64)
        loss_sum, num_correct, num_seen = self._accelerator.reduce(sums, reduction="sum").tolist()
        record = {
            "epoch": position.epoch,
            "lr": self._schedule.get_last_lr()[0],
            "train_loss": loss_sum / num_seen,
            "train_accuracy": num_correct / num_seen,
            **scores,
        }
        if is_kept(scores, position.history, self._config):
            position.best_epoch = position.epoch
            self._best_weights = _copy(self._trained(self.judged.state_dict()))
        position.history.append(record)
        position.epoch += 1
        position.step, position.num_correct, position.num_seen, position.loss_sum = 0, 0, 0, 0.0
        self.save()

    def take_best(self) -> Classifier:
        """The model with the best weights, without training wrappers."""
        model: Classifier = self._accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)
        model.load_state_dict(self._best_weights, strict=not self._config.freeze_backbones)
        make_plain(model, self._config)
        return model.cpu()

    def save(self) -> None:
        """Write everything that `restore` needs."""
        if not self._accelerator.is_main_process:
            return
        state = {
            "fingerprint": self._fingerprint,
            "position": dataclasses.asdict(self.position),
            "model": self._trained(self._run.model.state_dict()),
            "average": self._trained(self._average.module.state_dict()) if self._average else {},
            "num_averaged": self._average.n_averaged.item() if self._average else 0,
            "best": self._best_weights,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        save_checkpoint(self._run.directory, state)

    def restore(self) -> None:
        """Resume where an interrupted run with the same fingerprint stopped."""
        state = load_checkpoint(self._run.directory, self._fingerprint)
        if state is None:
            return
        self.position = Position(**state["position"])
        self._run.model.load_state_dict(state["model"], strict=False)
        if self._average:
            self._average.module.load_state_dict(state["average"], strict=False)
            self._average.n_averaged.fill_(state["num_averaged"])
        self._best_weights = state["best"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        console.print(f"Resuming at epoch {self.position.epoch}, step {self.position.step}.")

    def _trained(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state without frozen backbones."""
        if not self._config.freeze_backbones:
            return weights
        return without_backbones(weights)


def without_backbones(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's tensors except those of its backbones."""
    return {name: tensor for name, tensor in weights.items() if ".backbone." not in name}


def drop_modalities(batch: Inputs | Embeddings, chance: Tensor, config: TrainConfig) -> Inputs | Embeddings:
    """Remove the image of some items and the text of others, never both of one.

    chance  (B,) float32 in [0, 1): below drop_image the image is removed, above 1 - drop_text the text.
            An item with one modality keeps it.
    """
    lose_image = (chance < config.drop_image) & batch.text_present
    lose_text = (chance >= 1 - config.drop_text) & batch.image_present & ~lose_image
    return batch.keep(image=~lose_image, text=~lose_text)


def freeze_batch_norm(backbone: nn.Module, *, frozen_only: bool) -> None:
    """Let batch norms use their stored statistics instead of the batch's.

    frozen_only  only those whose own weights are not trained
    """
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            is_trained = module.weight is None or module.weight.requires_grad
            if not (frozen_only and is_trained):
                module.eval()


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
