"""A version with other labels: served only where asked for by name, and never with the labels of another."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from bench.release_show.versions import expect, find_strays, version_of
from diptych.export.export import export
from diptych.runs.run import Run
from diptych_client import Client
from diptych_serving.errors import UserError
from diptych_serving.release.activation import activate
from diptych_serving.release.control import Control
from diptych_serving.repository.layout import previous_version
from diptych_serving.server import Server, ServerConfig
from diptych_serving.traffic import ClosedLoop, classifying, outcomes
from tests.helpers.raw_wire import Item
from tests.helpers.releasing import contents, run_command
from tests.helpers.tiny_model import relabel

THINK_S = 0.05  # leaves the loading of models some of two cores
OLD_LABELS, NEW_LABELS = ("cold", "green", "warm"), ("warm", "green", "frozen")


@pytest.fixture(scope="module")
def relabelled(tiny_run: Run, exported_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2 answers with other labels than version 1, which serves."""
    repository = tmp_path_factory.mktemp("relabelled") / "model_repository"
    shutil.copytree(exported_repository, repository)
    export(relabel(tiny_run, NEW_LABELS), repository, allow_new_labels=True)
    return repository


def test_a_version_with_other_labels_serves_only_by_name_and_each_answer_has_its_own(
    relabelled: Path, items: list[Item], tmp_path: Path
) -> None:
    repository = shutil.copytree(relabelled, tmp_path / "model_repository")
    asked = [(image, text.decode()) for image, text in items]
    expected = expect(repository, (1, 2), asked)
    server = Server(repository, ServerConfig.on_free_ports())
    with server as running, Control(running.grpc_url) as control:
        running.wait_until_ready()
        before = contents(repository)
        with pytest.raises(
            UserError, match="version 2 has other labels than version 1, which serves: it adds fro"
        ):
            activate(repository, 2, control)
        assert contents(repository) == before
        with (
            ClosedLoop(4 * [partial(classifying, running.grpc_url)], asked, pause_s=THINK_S) as over_grpc,
            ClosedLoop(2 * [partial(classifying, running.http_url)], asked, pause_s=THINK_S) as over_http,
        ):
            done = activate(repository, 2, control, allow_new_labels=True)
            assert done.new_labels == "adds frozen; lacks cold; has the order warm, green, frozen"
            with Client(running.grpc_url) as client:
                assert client.labels() == NEW_LABELS
            activate(repository, previous_version(repository), control, allow_new_labels=True)
            with Client(running.http_url) as client:
                assert client.labels() == OLD_LABELS
    for traffic in (over_grpc, over_http):
        assert outcomes(traffic.calls).keys() == {"Answer"}
        assert {version_of(call) for call in traffic.calls} == {1, 2}
        assert find_strays(traffic.calls, expected, 1e-5) == []


def test_without_a_server_other_labels_need_the_flag_too(relabelled: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(relabelled, tmp_path / "model_repository")
    with pytest.raises(UserError, match="--allow-new-labels"):
        activate(repository, 2)
    activated = run_command("activate", repository, "--allow-new-labels")
    assert "other labels than before: it adds frozen; lacks cold" in activated
    assert "3: adds cold" in re.sub(r"\s+", " ", run_command("list", repository))
    with Client(f"local:{repository}", timeout_s=60) as client:
        assert client.labels() == NEW_LABELS
    run_command("rollback", repository)  # to labels that callers have had
    with Client(f"local:{repository}", timeout_s=60) as client:
        assert client.labels() == OLD_LABELS
