"""Releases on a running server: activate, roll back, prune; what must fail leaves everything as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.release_show.spoiling import break_checksum, break_torchscript
from diptych_client import Client
from diptych_serving.errors import UserError
from diptych_serving.release.activation import activate
from diptych_serving.release.control import Control
from diptych_serving.repository.layout import (
    held_versions,
    loaded_versions,
    prune,
    serving_version,
    write_loaded,
)
from diptych_serving.repository.lock import only_one
from diptych_serving.repository.settings import Settings
from diptych_serving.server import Server, ServerConfig
from tests.helpers.releasing import run_command


@pytest.fixture
def repository(releases: Path, tmp_path: Path) -> Path:
    return shutil.copytree(releases, tmp_path / "model_repository")


@pytest.fixture
def tuned(repository: Path) -> Iterator[Server]:
    """As `serve --tuning`: it reads a copy of the repository, with other settings."""
    settings = Settings(text_encoder_instances=2)
    with Server(repository, ServerConfig.on_free_ports(settings=settings)) as server:
        server.wait_until_ready()
        yield server


def test_older_versions_are_unloaded_and_pruned_and_those_in_use_are_kept(
    tuned: Server, repository: Path
) -> None:
    with Control(tuned.grpc_url) as control:
        activate(repository, 2, control)
        assert activate(repository, 3, control, keep=2).pruned == [1]
        assert held_versions(repository) == loaded_versions(repository) == [2, 3]
        assert {version for model, version in control.loaded() if model == "image_encoder"} == {2, 3}
        # The newest one alone is to be kept, but 3 is loaded for a rollback.
        assert activate(repository, 2, control, keep=1).pruned == []
        assert held_versions(repository) == [2, 3]
        assert "1" not in [path.name for path in repository.glob("*/*")]


def test_pruning_keeps_what_serves_what_is_loaded_and_what_a_server_holds(repository: Path) -> None:
    assert prune(repository, 1, in_use={2}) == []
    assert held_versions(repository) == [1, 2, 3]
    write_loaded(repository, [2])  # by hand, without the version that the ensemble names
    assert prune(repository, 1) == []
    write_loaded(repository, [1])
    assert prune(repository, 1) == [2]
    assert held_versions(repository) == [1, 3]


def test_one_release_at_a_time(repository: Path) -> None:
    with only_one(repository), pytest.raises(UserError, match="another release or export is changing it"):
        activate(repository, 2)
    activate(repository, 2)
    assert serving_version(repository) == 2


def test_a_server_starts_though_a_version_that_was_never_activated_is_broken(repository: Path) -> None:
    break_torchscript(repository, 3)
    with Server(repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        with Client(server.grpc_url) as client:
            assert client.classify(text="snow").model_version == "1"


def test_without_a_server_the_files_are_proven_and_the_next_start_serves_them(repository: Path) -> None:
    answered = run_command("activate", repository, "2")
    assert "version 2 serves from the next start, 1 did before" in answered
    run_command("rollback", repository)
    assert serving_version(repository) == 1
    listed = run_command("list", repository)
    assert "serves" in listed
    assert "loaded" in listed
    break_checksum(repository, 3)
    with pytest.raises(UserError, match="SHA-256"):
        activate(repository, 3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("model_version: 1", "model_version: 2", 1), r"pins 2 versions \(1, 2\)"),
        (
            lambda text: text.replace('label_filename: "1/labels.txt"', ""),
            "lines name a version; expected",
        ),
    ],
    ids=["mixed pins", "no labels"],
)
def test_an_ensemble_that_does_not_name_one_version_throughout_is_not_released(
    repository: Path, edit: Callable[[str], str], message: str
) -> None:
    config = repository / "classifier/config.pbtxt"
    config.write_text(edit(config.read_text()))
    with pytest.raises(UserError, match=message):
        activate(repository, 2)
