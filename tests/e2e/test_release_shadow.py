"""The same items answered by the version that serves and by one that does not yet."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.release_show.spoiling import break_torchscript
from bench.release_show.versions import SHIFT
from diptych.analysis.comparison.asking import compare_versions
from diptych.analysis.comparison.result import Comparison
from diptych.evaluation.predict import predict
from diptych.runs.run import Run
from diptych_serving.errors import UserError
from diptych_serving.release.control import Control
from diptych_serving.repository.lock import only_one
from diptych_serving.server import Server, ServerConfig
from diptych_serving.server.admin_key import AdminKey
from diptych_serving.server.tls import ServerTls
from tests.helpers.catalogues import make_catalogue
from tests.helpers.certificates import make_certificates
from tests.helpers.releasing import contents, run_command

KEY = AdminKey("x-admin-key", "the-key-of-this-deployment")


@pytest.fixture
def repository(releases: Path, tmp_path: Path) -> Path:
    return shutil.copytree(releases, tmp_path / "model_repository")


@pytest.fixture
def running(repository: Path) -> Iterator[Server]:
    with Server(repository, ServerConfig.on_free_ports()) as server:
        server.wait_until_ready()
        yield server


def test_over_tls_with_the_key_a_version_is_shadowed_activated_and_taken_back(
    repository: Path, tmp_path: Path
) -> None:
    directory = make_certificates(tmp_path / "certificates")
    table = make_catalogue(tmp_path / "items", 24, first_seed=4000)
    page = tmp_path / "shadow.html"
    tls = ServerTls(
        certificate=directory / "server.pem", key=directory / "server.key", client_ca=directory / "ca.pem"
    )
    server = Server(repository, ServerConfig.on_free_ports(tls=tls, admin_key=KEY))
    with server as running:
        running.wait_until_ready()
        url = f"grpcs://localhost:{running.ports.grpc}"
        secured = ["--server", url, "--tls-ca", directory / "ca.pem"]
        secured += ["--tls-cert", directory / "client.pem", "--tls-key", directory / "client.key"]
        to_server = [*secured, "--key", f"{KEY.header}={KEY.value}"]
        with pytest.raises(UserError, match="get_model_repository_index"):
            run_command("list", repository, *secured, "--key", f"{KEY.header}=not-the-key-of-this-one")
        before = contents(repository)
        shadowed = run_command("shadow", repository, "3", "--catalogue", table, "--out", page, *to_server)
        assert contents(repository) == before
        assert re.search(r"24 items, the same label for \d+", shadowed)
        assert "version 1 still serves" in shadowed
        assert "<h1>version 1, which serves, and version 3</h1>" in page.read_text("utf-8")
        assert states(run_command("list", repository, *to_server)) == ["serves", "", ""]
        activated = run_command("activate", repository, "2", *to_server)
        assert f"version 2 serves at {url}, 1 did before" in activated
        assert "version 1 serves" in run_command("rollback", repository, *to_server)
        assert states(run_command("list", repository, *to_server)) == ["serves", "loaded", ""]


def states(listed: str) -> list[str]:
    """The second column of `release list`, by version."""
    rows = [line for line in listed.splitlines() if " tiny_run " in line]
    return [re.split(r" +", row, maxsplit=3)[2] * ("serves" in row or "loaded" in row) for row in rows]


def test_a_shadow_leaves_server_and_repository_as_they_were_whatever_happens(
    running: Server, repository: Path, tiny_run: Run, tmp_path: Path
) -> None:
    directory = tmp_path / "items"
    table = make_catalogue(directory, 12, first_seed=4000)
    with Control(running.grpc_url) as control:
        before, loaded = contents(repository), control.loaded()

        def shadow_it(catalogue: Path, version: int = 2) -> Comparison:
            return compare_versions(repository, version, control, catalogue, concurrency=2)

        def is_as_it_was() -> bool:
            return contents(repository) == before and control.loaded() == loaded

        comparison = shadow_it(table)
        assert is_as_it_was()
        old, new = (run_of(tiny_run, version) for version in (1, 2))
        (directory / "4001.png").write_bytes(b"not a picture")
        refused = shadow_it(table)
        assert is_as_it_was()
        assert list(refused.old.refusals) == list(refused.new.refusals) == [1]
        assert "preprocess: image" in refused.new.refusals[1]

        (directory / "4002.png").unlink()
        with pytest.raises(UserError, match="cannot read its image"):
            shadow_it(table)
        assert is_as_it_was()
        with pytest.raises(UserError, match="version 1 serves already"):
            shadow_it(table, version=1)
        with only_one(repository), pytest.raises(UserError, match="another release or export is changing it"):
            shadow_it(table)
        break_torchscript(repository, 3)
        before = contents(repository)
        with pytest.raises(UserError, match="load_model fusion_head"):
            shadow_it(table, version=3)
        assert is_as_it_was()

    for side, run in ((comparison.old, old), (comparison.new, new)):
        for index, item in enumerate(comparison.items[3:6], start=3):
            expected = predict(run, item.read_image(), item.text)
            found = {label: side.probability(index, label) for label in side.labels}
            assert found == pytest.approx(expected, abs=1e-5)


def run_of(run: Run, version: int) -> Run:
    """What `export_versions` exported as that version."""
    model = copy.deepcopy(run.model)
    model.fusion_head.classifier.bias.data[0] += SHIFT * version
    return dataclasses.replace(run, model=model)
