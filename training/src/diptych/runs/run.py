"""Reads and writes a run: the result of training, the start of evaluation, prediction and export."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from diptych.config.loader import Config, load_config, save_config
from diptych.data.labels import LABELS_FILE, read_labels, write_labels
from diptych.files import save_tensors, write_json
from diptych.models.backbones import build_classifier
from diptych.models.classifier import Classifier
from diptych.models.image_backbones import save_image_architecture
from diptych.models.text_backbones import text_architecture
from diptych_serving.errors import UserError
from diptych_serving.preprocessing import SPEC_FILE, TOKENIZER_FILE, Preprocessor

CONFIG_FILE = "config.toml"
WEIGHTS_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
HISTORY_FILE = "history.json"
TEXT_ARCHITECTURE = "text_backbone"
IMAGE_ARCHITECTURE = "image_backbone"
# The files that give the weights their meaning. model.safetensors holds a digest of them.
COMPANIONS = (LABELS_FILE, SPEC_FILE, TOKENIZER_FILE)
CHANGEABLE = ("data.", "limits.")  # sections that may be changed after training
BELONGS_TO = "sha256 of labels, preprocessing and tokenizer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model with its config, labels and preprocessing."""

    directory: Path
    config: Config
    labels: list[str]
    preprocessor: Preprocessor
    model: Classifier

    def save(self) -> None:
        """Write everything but the metrics into the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.directory / CONFIG_FILE)
        self.preprocessor.save(self.directory)
        write_labels(self.labels, self.directory / LABELS_FILE)
        text_architecture(self.model.text_encoder).save_pretrained(self.directory / TEXT_ARCHITECTURE)
        save_image_architecture(self.model.image_encoder, self.directory / IMAGE_ARCHITECTURE)
        belongs_to = {BELONGS_TO: _digest_companions(self.directory)}
        save_tensors(self.model.state_dict(), self.directory / WEIGHTS_FILE, belongs_to)


def load_run(directory: Path, overrides: Sequence[str] = ()) -> Run:
    """Read a run. Needs no hub, no weight package and no pickle.

    overrides  `data.KEY=VALUE`, `limits.KEY=VALUE`: other tables, other limits
    """
    if not (directory / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{directory}: not a finished run ({WEIGHTS_FILE} is missing). Make one: diptych train"
        )
    for override in overrides:
        if not override.strip().startswith(CHANGEABLE):
            raise UserError(f"--set {override}: only [data] and [limits] of a trained run can be changed")
    config = load_config(directory / CONFIG_FILE, overrides)
    try:
        labels = read_labels(directory / LABELS_FILE)
        image = dataclasses.replace(config.image, weights="random")
        model = build_classifier(
            image,
            config.text,
            config.fusion,
            len(labels),
            text_architecture=directory / TEXT_ARCHITECTURE,
            image_architecture=directory / IMAGE_ARCHITECTURE,
        )
        weights = load_file(directory / WEIGHTS_FILE)
        _require_companions(directory)
        model.load_state_dict(weights)
        preprocessor = Preprocessor.load(directory).within(config.limits.training)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{directory}: damaged, or mixed from several runs ({reason}). Train it again, or copy it again"
        ) from error
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise UserError(
            f"{directory}: its weights are not finite, because its training diverged. "
            "Train it again with a lower train.lr"
        )
    return Run(
        directory=directory, config=config, labels=labels, preprocessor=preprocessor, model=model.eval()
    )


def _digest_companions(directory: Path) -> str:
    digest = hashlib.sha256()
    for name in COMPANIONS:
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()


def _require_companions(directory: Path) -> None:
    """Raise ValueError if labels or preprocessing belong to another run."""
    with safe_open(directory / WEIGHTS_FILE, "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get(BELONGS_TO, digest := _digest_companions(directory)) != digest:
        raise ValueError(f"{', '.join(COMPANIONS)} are not those that {WEIGHTS_FILE} was saved with")


def read_metrics(directory: Path) -> dict[str, Any]:
    """The sections of metrics.json; empty if the file is missing."""
    path = directory / METRICS_FILE
    metrics: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return metrics


def update_metrics(directory: Path, **sections: Any) -> None:
    """Set sections of metrics.json and keep the others. None removes one."""
    metrics = {**read_metrics(directory), **sections}
    kept = {name: section for name, section in metrics.items() if section is not None}
    write_json(directory / METRICS_FILE, kept)
