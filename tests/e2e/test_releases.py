"""Releases on a running server under load: activate, roll back, and activations that must fail."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from raw_wire import Item
from typer.testing import CliRunner

from diptych.cli import app
from diptych.errors import UserError
from diptych.export.repository import export
from diptych.release.activation import activate
from diptych.release.asking import ask_files
from diptych.release.control import Control
from diptych.release.repository import (
    held_versions,
    loaded_versions,
    previous_version,
    serving_version,
    sha256,
)
from diptych.run import Run
from diptych.serving import Server
from diptych_client import Client

NUM_CLIENTS = 8
THINK_S = 0.05  # leaves the loading of models some of two cores


@pytest.fixture(scope="module")
def releases(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions whose answers differ; version 1 serves."""
    repository = tmp_path_factory.mktemp("releases") / "model_repository"
    for version in (1, 2, 3):
        run = dataclasses.replace(tiny_run, model=_shifted(tiny_run, 0.2 * version))
        assert export(run, repository)[0] == version
    return repository


def _shifted(run: Run, bias: float):
    model = copy.deepcopy(run.model)
    model.fusion_head.classifier.bias.data[0] += bias
    return model


@pytest.fixture
def repository(releases: Path, tmp_path: Path) -> Path:
    return shutil.copytree(releases, tmp_path / "model_repository")


@pytest.fixture
def running(repository: Path) -> Iterator[Server]:
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        server.wait_until_ready()
        yield server


class Traffic:
    """Eight clients that ask one item after the other and keep every answer."""

    def __init__(self, server: Server, items: list[Item]) -> None:
        self._server, self._items = server, items
        self._stop = threading.Event()
        self.answers: list[tuple[int, int, dict[str, float]]] = []
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(NUM_CLIENTS)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, index: int) -> None:
        with Client(self._server.grpc_url, timeout_s=60) as client:
            while not self._stop.is_set():
                index = (index + 1) % len(self._items)
                image, text = self._items[index]
                try:
                    answer = client.classify(image=image or None, text=text.decode())
                except Exception as error:
                    self.errors.append(error)
                else:
                    self.answers.append((index, int(answer.model_version), answer.probabilities))
                time.sleep(THINK_S)


def _configs(repository: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}


def _spoil_torchscript(repository: Path) -> None:
    """A file that is whole, says its manifest, and that no libtorch reads."""
    path = repository / "fusion_head/3/model.pt"
    path.write_bytes(path.read_bytes()[:1000])
    manifest = repository / "classifier/3/manifest.json"
    tree = json.loads(manifest.read_text())
    tree["sha256"]["fusion_head/3/model.pt"] = sha256(path)
    manifest.write_text(json.dumps(tree))


def _spoil_checksum(repository: Path) -> None:
    with (repository / "image_encoder/3/model.pt").open("ab") as file:
        file.write(b"\0")


def _spoil_golden(repository: Path) -> None:
    path = repository / "classifier/3/golden.json"
    golden = json.loads(path.read_text())
    golden["requests"][4]["probabilities"].reverse()
    path.write_text(json.dumps(golden))
    manifest = repository / "classifier/3/manifest.json"
    tree = json.loads(manifest.read_text())
    tree["sha256"]["classifier/3/golden.json"] = sha256(path)
    manifest.write_text(json.dumps(tree))


FAILURES = {
    _spoil_torchscript: "load_model fusion_head",
    _spoil_checksum: "image_encoder/3/model.pt: its SHA-256 is not the one in the manifest of version 3",
    _spoil_golden: r"differs by 0\.\d+ in a probability from the one recorded at export",
}


def test_under_load_every_answer_belongs_to_the_version_it_names(
    running: Server, repository: Path, items: list[Item], tmp_path: Path
) -> None:
    expected = {
        version: [ask_files(repository, version)(image, text) for image, text in items] for version in (1, 2)
    }
    with Traffic(running, items) as traffic, Control(running.grpc_url) as control:
        assert activate(repository, 2, control).before == 1
        assert serving_version(repository) == 2
        assert activate(repository, previous_version(repository), control).version == 1
        for spoil, reason in FAILURES.items():
            before = _configs(repository)
            shutil.copytree(repository, tmp_path / spoil.__name__)
            spoil(repository)
            with pytest.raises(UserError, match=reason):
                activate(repository, 3, control)
            assert _configs(repository) == before
            assert control.serving_version() == 1
            for name in ("classifier", "fusion_head", "image_encoder"):  # whole again
                shutil.rmtree(repository / name / "3")
                shutil.copytree(tmp_path / spoil.__name__ / name / "3", repository / name / "3")
        activate(repository, 2, control)

    assert traffic.errors == []
    served = Counter(version for _, version, _ in traffic.answers)
    assert set(served) == {1, 2}
    for index, version, probabilities in traffic.answers:
        np.testing.assert_allclose(list(probabilities.values()), expected[version][index], atol=1e-5)


def test_older_versions_are_unloaded_and_pruned(running: Server, repository: Path) -> None:
    with Control(running.grpc_url) as control:
        activate(repository, 2, control)
        done = activate(repository, 3, control, keep=2)
        assert done.pruned == [1]
        assert held_versions(repository) == loaded_versions(repository) == [2, 3]
        assert {version for model, version in control.loaded() if model == "image_encoder"} == {2, 3}


def test_a_server_starts_though_a_version_that_was_never_activated_is_broken(
    repository: Path, items: list[Item]
) -> None:
    _spoil_torchscript(repository)
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        server.wait_until_ready()
        with Client(server.grpc_url) as client:
            assert client.classify(text="snow").model_version == "1"


def test_without_a_server_the_files_are_proven_and_the_next_start_serves_them(repository: Path) -> None:
    runner = CliRunner()
    answered = runner.invoke(app, ["release", "activate", str(repository), "2"], catch_exceptions=False)
    assert "version 2 serves from the next start, 1 did before" in answered.output
    assert runner.invoke(app, ["release", "rollback", str(repository)]).exit_code == 0
    assert serving_version(repository) == 1
    listed = runner.invoke(app, ["release", "list", str(repository)]).output
    assert "serves" in listed
    assert "loaded" in listed
    _spoil_checksum(repository)
    with pytest.raises(UserError, match="SHA-256"):
        runner.invoke(app, ["release", "activate", str(repository), "3"], catch_exceptions=False)
