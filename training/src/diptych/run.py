"""A run directory: everything that training leaves and that evaluation, prediction and export start from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from diptych.config import Config, load_config, save_config
from diptych.errors import UserError
from diptych.models.backbones import build_classifier, text_architecture
from diptych.models.classifier import Classifier
from diptych.preprocessing import Preprocessor

CONFIG_FILE = "config.toml"
WEIGHTS_FILE = "model.safetensors"
LABELS_FILE = "labels.txt"
METRICS_FILE = "metrics.json"
TEXT_ARCHITECTURE = "text_backbone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model with all that belongs to it."""

    directory: Path
    config: Config
    labels: list[str]
    preprocessor: Preprocessor
    model: Classifier

    def save(self) -> None:
        """Write all but the metrics. The weights come last: a directory that has them is whole."""
        self.directory.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.directory / CONFIG_FILE)
        self.preprocessor.save(self.directory)
        (self.directory / LABELS_FILE).write_text("".join(f"{label}\n" for label in self.labels), "utf-8")
        text_architecture(self.model.text_encoder).save_pretrained(self.directory / TEXT_ARCHITECTURE)
        unfinished = self.directory / f"{WEIGHTS_FILE}.tmp"
        save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}, unfinished)
        unfinished.rename(self.directory / WEIGHTS_FILE)


def load_run(directory: Path) -> Run:
    """Read what `Run.save` wrote. Needs no hub, no weight package and no pickle."""
    if not (directory / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{directory}: not a finished run ({WEIGHTS_FILE} is missing). Make one: diptych train"
        )
    config = load_config(directory / CONFIG_FILE)
    labels = (directory / LABELS_FILE).read_text("utf-8").splitlines()
    image = dataclasses.replace(config.image, weights="random")
    model = build_classifier(
        image, config.text, config.fusion, len(labels), text_architecture=directory / TEXT_ARCHITECTURE
    )
    model.load_state_dict(load_file(directory / WEIGHTS_FILE))
    return Run(
        directory=directory,
        config=config,
        labels=labels,
        preprocessor=Preprocessor.load(directory),
        model=model.eval(),
    )


def update_metrics(directory: Path, **sections: Any) -> None:
    """Set sections of metrics.json and keep the others."""
    path = directory / METRICS_FILE
    metrics = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**metrics, **sections}, indent=2) + "\n", "utf-8")
