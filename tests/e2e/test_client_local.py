"""`Client("local:...")`: the exported repository in this process answers as the server does."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diptych_client import AsyncClient, Client, InvalidInput
from diptych_serving.server import Server
from tests.helpers.raw_wire import Item
from tests.helpers.tiny_repository import build_tiny_repository, write_manifest

LOAD_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from diptych_client._cli import main
sys.exit(main(["classify", "--text", "leaf", "--url", "local:" + sys.argv[1]]))
"""


@pytest.fixture
def repository(exported_repository: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(exported_repository, tmp_path / "repository"))


def test_answers_are_those_of_the_server(
    server: Server, exported_repository: Path, items: list[Item]
) -> None:
    before = sorted(exported_repository.rglob("*"))
    with Client(server.grpc_url, timeout_s=30) as remote, Client(f"local:{exported_repository}") as local:
        assert local.labels() == remote.labels()
        for image, text in items:
            expected = remote.classify(image or None, text.decode())
            answer = local.classify(image or None, text.decode())
            assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
            assert (answer.label, answer.model_version) == (expected.label, expected.model_version)
    assert sorted(exported_repository.rglob("*")) == before  # no bytecode, no cache


def test_bad_items_are_refused_in_the_words_of_the_server(server: Server, exported_repository: Path) -> None:
    refused = []
    for url in (server.grpc_url, f"local:{exported_repository}"):
        with (
            Client(url, timeout_s=30) as client,
            pytest.raises(InvalidInput, match="no known format") as caught,
        ):
            client.classify(b"not a picture", "words")
        refused.append((caught.value.message, caught.value.field))
    assert refused[0] == refused[1]


def test_everything_else_works_in_process_too(exported_repository: Path) -> None:
    with Client(f"local:{exported_repository}", timeout_s=30) as client:
        assert client.health(deep=True).is_healthy
        assert client.server_info().model_versions == ("1",)
        outcomes = list(
            client.classify_many([{"text": "leaf"}] * 5 + [{"image": b"no picture"}], concurrency=3)
        )
    assert [isinstance(outcome.error, InvalidInput) for outcome in outcomes] == [False] * 5 + [True]

    async def ask() -> str | None:
        async with AsyncClient(f"local:{exported_repository}", timeout_s=30) as client:
            return (await client.classify(text="leaf")).label

    assert asyncio.run(ask()) == outcomes[0].answer.label


def test_the_version_is_the_one_that_the_ensemble_pins(repository: Path) -> None:
    for model in repository.iterdir():
        shutil.copytree(model / "1", model / "2")
    manifest = repository / "classifier/2/manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace("/1/", "/2/"), "utf-8")
    with Client(f"local:{repository}", timeout_s=30) as client:
        assert client.classify(text="leaf").model_version == "1"

    config = repository / "classifier/config.pbtxt"
    pinned = config.read_text("utf-8").replace("model_version: 1", "model_version: 2")
    config.write_text(pinned, "utf-8")
    with pytest.raises(InvalidInput, match=r"pins versions \[1, 2\]"):
        Client(f"local:{repository}")
    config.write_text(pinned.replace("versions: 1", "versions: 2"), "utf-8")
    with Client(f"local:{repository}", timeout_s=30) as client:
        assert client.classify(text="leaf").model_version == "2"


@pytest.mark.parametrize(
    "file",
    [
        "text_encoder/1/model.pt",
        "preprocess/1/preprocessing.py",
        "preprocess/1/image_files.py",
        "preprocess/1/tokenizer.json",
    ],
)
def test_a_file_that_was_changed_is_not_run(repository: Path, tmp_path: Path, file: str) -> None:
    with (repository / file).open("ab") as changed:
        changed.write(f"\nopen({str(tmp_path / 'was_run')!r}, 'w')\n".encode())
    with pytest.raises(InvalidInput, match=f"{file}, whose checksum is not the one in the manifest"):
        Client(f"local:{repository}")
    assert not (tmp_path / "was_run").exists()


def test_only_a_line_feed_ends_a_label(tmp_path: Path) -> None:
    repository = build_tiny_repository(tmp_path / "tiny")
    (repository / "classifier/1/labels.txt").write_bytes("a\u2028b\nc\x85d\ne\x0cf\n".encode())
    write_manifest(repository)
    with Client(f"local:{repository}", timeout_s=30) as client:
        assert list(client.labels()) == ["a\u2028b", "c\x85d", "e\x0cf"]


def test_what_is_no_repository_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no readable .*classifier/config.pbtxt .*`diptych export` wrote"):
        Client(f"local:{tmp_path}/none")
    (repository / "classifier/1/manifest.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"no checksums in .*manifest\.json"):
        Client(f"local:{repository}")
    (repository / "classifier/config.pbtxt").write_text("no { config")
    with pytest.raises(InvalidInput, match=r"config\.pbtxt: "):
        Client(f"local:{repository}")


def test_without_torch_the_extra_is_named(exported_repository: Path) -> None:
    command = [sys.executable, "-c", LOAD_WITHOUT_TORCH, str(exported_repository)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    message = "diptych-client: torch is not installed; get it with: pip install 'diptych-client[local]'\n"
    assert done.stderr == message
