"""One real tritonserver over the tiny trained model, for tests that only ask it.

Import the fixtures into a conftest.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.release_show.versions import export_versions
from diptych.runs.run import Run
from diptych_serving.server import Server, ServerConfig
from tests.helpers.raw_wire import Item

KINDS = ("both", "image only", "text only")


@pytest.fixture(scope="session")
def server(exported_repository: Path) -> Iterator[Server]:
    with Server(exported_repository, ServerConfig.on_free_ports()) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def items(tiny_run: Run) -> list[Item]:
    """Validation items, every kind of them: both modalities, image only, text only."""
    directory = Path(tiny_run.config.data.val_csv).parent
    images = [path.read_bytes() for path in sorted(directory.glob("*.png"))[:9]]
    texts = [f"a {word} number {number}".encode() for number, word in enumerate(9 * ["snow", "leaf", "lamp"])]
    both = list(zip(images, texts, strict=False))
    return [*both, *((image, b"") for image, _ in both), *((b"", text) for _, text in both)]


@pytest.fixture(scope="session")
def releases(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions whose answers differ; version 1 serves."""
    return export_versions(tiny_run, tmp_path_factory.mktemp("releases") / "model_repository", num_versions=3)
