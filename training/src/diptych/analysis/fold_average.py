"""Makes one run from the folds' models: their frozen backbones, and the mean of their trained weights.

Weights can be averaged only because all folds start from the same ones. docs/results.md compares the mean
with single models.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.config.loader import Config
from diptych.data.embedding_cache import embed_items_once
from diptych.data.examples import choose_examples, write_examples
from diptych.data.items import Item
from diptych.evaluation.predict import CONDITIONS, classify
from diptych.files import write_json
from diptych.models.classifier import Classifier, Embeddings
from diptych.runs.directory import begin_run, finish_run
from diptych.runs.fingerprint import FINGERPRINT_FILE, STARTING_WEIGHTS
from diptych.runs.run import METRICS_FILE, WEIGHTS_FILE, Run, load_run
from diptych.train.trainer import without_backbones
from diptych_serving.errors import UserError


def write_average(
    directories: Sequence[Path],
    out: Path,
    *,
    config: Config,
    held_out: Sequence[Sequence[Item]],
    temperatures: Mapping[str, float],
    out_of_fold: Mapping[str, Any],
) -> None:
    """Write the run OUT from the runs of the folds.

    The averaged model has seen every item, so no label can calibrate it. Its temperatures start from those of
    the folds' models, which are fitted on held-out items. Averaging makes logits smaller, so each temperature
    is multiplied by the ratio of their sizes over all items, which needs no labels.

    held_out      the items of each fold; the run keeps some of each as examples
    temperatures  by condition, for the folds' models
    out_of_fold   scores of the folds' models by condition. metrics.json repeats them; it has no scores of
                  the averaged model, because every item was in its training
    """
    _require_same_start(directories)
    with begin_run(out) as directory:
        run = dataclasses.replace(load_run(directories[0]), directory=directory, config=config)
        model, head = run.model, run.model.fusion_head
        embeddings = _embed(run, held_out)
        folds = [without_backbones(load_file(each / WEIGHTS_FILE)) for each in directories]
        averaged = average_weights(folds)
        averaged_spread, *fold_spreads = [_spread(model, each, embeddings) for each in (averaged, *folds)]
        model.load_state_dict(averaged, strict=False)
        scaled = {
            name: temperatures[name] * spread / mean(each[name] for each in fold_spreads)
            for name, spread in averaged_spread.items()
        }
        head.temperature.copy_(torch.tensor([scaled[name] for name in CONDITIONS]))
        head.no_image.copy_(model.image_encoder.projection.absent.detach())
        head.no_text.copy_(model.text_encoder.projection.absent.detach())
        run.save()
        items = [item for part in held_out for item in part]
        write_examples(choose_examples(items, run.preprocessor), directory)
        cost = {
            "num_items": len(items),
            "num_averaged": len(directories),
            "temperature": {name: round(value, 4) for name, value in scaled.items()},
        }
        write_json(directory / METRICS_FILE, {"train": cost, "out_of_fold": out_of_fold})
        finish_run(out)


def average_weights(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor over models with the same tensor names."""
    return {name: torch.stack([each[name] for each in models]).mean(dim=0) for name in models[0]}


def _embed(run: Run, parts: Sequence[Sequence[Item]]) -> Embeddings:
    """Embeddings of all parts, in order. They are already in the cache."""
    return embed_items_once(
        run.model,
        [item for part in parts for item in part],
        run.preprocessor,
        title="held-out items",
        num_workers=run.config.train.num_workers,
    )


def _spread(model: Classifier, weights: Mapping[str, Tensor], embeddings: Embeddings) -> dict[str, float]:
    """By condition, the standard deviation of an item's logits around their mean, over all items.

    A condition without items gets that of the whole items.
    """
    model.load_state_dict(weights, strict=False)
    has_image, has_text = embeddings.image_present, embeddings.text_present
    shown = {"both": has_image & has_text, "image_only": has_image, "text_only": has_text}
    spreads = {}
    for name, (image, text) in CONDITIONS.items():
        is_met = bool(shown[name].any())
        rows = embeddings.keep(image=image, text=text).rows(shown[name]) if is_met else embeddings
        logits = classify(model, rows)
        spreads[name] = (logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt().item()
    return spreads


def _require_same_start(directories: Sequence[Path]) -> None:
    """Raise UserError if folds started from different weights, such as another weight package."""
    starts = [
        json.loads((each / FINGERPRINT_FILE).read_text("utf-8"))[STARTING_WEIGHTS] for each in directories
    ]
    others = [each for each, start in zip(directories, starts, strict=True) if start != starts[-1]]
    if others:
        raise UserError(
            f"{', '.join(map(str, others))}: started from other weights than {directories[-1]}, so they "
            "cannot be averaged. Delete them and run the same command again"
        )
