"""The command `diptych` as a user runs it: train, evaluate, predict, export; errors as one message.

Most calls run in this process, for each new one spends six seconds on importing torch and transformers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from diptych.cli.main import main as cli
from diptych.runs.run import Run
from tests.helpers.certificates import write_key_pair

Diptych = Callable[..., tuple[int, str, str]]


@pytest.fixture
def diptych(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Diptych:
    """Runs the entry point. Returns status, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diptych", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli()
        printed = capsys.readouterr()
        return int(exited.value.code or 0), printed.out, printed.err

    return run


def test_a_run_is_trained_evaluated_asked_and_exported(
    diptych: Diptych, tiny_config: Path, tmp_path: Path
) -> None:
    run, repository, plot = tmp_path / "run", tmp_path / "build/model_repository", tmp_path / "out.png"
    picture = tiny_config.parent / "test/2001.png"

    def succeed(*arguments: str | Path) -> str:
        status, output, errors = diptych(*arguments)
        assert status == 0, errors
        return output

    table = succeed("train", tiny_config, "--out", run, "--set", "train.epochs=2")
    conditions = ["both", "image_only", "text_only"]
    assert [line.split()[0] for line in table.splitlines()[-4:]] == ["test", *conditions]
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert all({"accuracy", "macro_f1"} <= set(test[condition]) for condition in conditions)

    report = succeed("evaluate", run)
    assert "precision" in report
    assert report.endswith("\n".join(table.splitlines()[-4:]) + "\n")

    answer = succeed("predict", run, "--image", picture, "--text", "snow and ice", "--plot", plot)
    percentages = [float(line.split()[1].rstrip("%")) for line in answer.splitlines()]
    assert len(percentages) == 3
    assert sum(percentages) == pytest.approx(100, abs=0.03)
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG"

    parity = succeed("export", run, "--to", repository, "--cores", "3")
    assert "same label 100.0%" in parity
    assert f"{repository}: version 1. Serve it: diptych serve {repository}" in parity
    for name in ("preprocess/1/tokenizer.json", "image_encoder/1/model.pt", "fusion_head/1/model.pt"):
        assert (repository / name).is_file()
    assert "instance_group [ { count: 3 } ]" in (repository / "image_encoder/config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.toml", "--out", "run"], "absent.toml: no such file"),
        (["evaluate", "absent"], "absent: not a finished run (model.safetensors is missing)"),
        (["predict", "absent", "--image", "absent.png"], "--image absent.png: no such file"),
        (["export", "absent"], "absent: not a finished run (model.safetensors is missing)"),
    ],
    ids=["train", "evaluate", "predict", "export"],
)
def test_what_the_user_can_put_right_is_one_message_and_status_one(
    diptych: Diptych, arguments: list[str], message: str
) -> None:
    status, output, errors = diptych(*arguments)
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: {message}")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict no --text a --plot no/x.png", "there is no directory no"),
        ("predict no --text a --plot x", "has no ending; accepted: ."),
        ("explain no --text a --plot x.xyz", "ends in '.xyz'; accepted: ."),
        ("compare no no --out no/c.html", "there is no directory no"),
        ("compare no no --out /tmp", "is a directory; name a file"),
        ("compare no no --out /proc/version", "cannot be written"),
        ("tune no --p99-ms 9 --out no/t.toml", "there is no directory no"),
        ("tune no --p99-ms 9 --plot no/t.png", "there is no directory no"),
        ("demo no no --plot no/p.png", "there is no directory no"),
        ("release shadow no --server grpc://h --catalogue t.csv --out no/s.html", "there is no directory no"),
        ("export no --to /proc/version/x", "/proc/version is a file; name a directory"),
        ("ablate no --out /proc/version", "/proc/version is a file; name a directory"),
        ("doubt no --out /proc/version", "/proc/version is a file; name a directory"),
        ("data openclipart --out /proc/version", "/proc/version is a file; name a directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_noticed_first(
    diptych: Diptych, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    *_, option, path = arguments = command.split()
    status, output, errors = diptych(*arguments)
    assert (status, output) == (1, "")
    assert errors.startswith(f"error: {option} {path}: {message}")
    assert not list(tmp_path.iterdir())


def test_an_item_that_cannot_be_answered_is_the_preprocessors_message(
    diptych: Diptych, tiny_run: Run
) -> None:
    status, _, errors = diptych("predict", tiny_run.directory)
    assert status == 1
    assert errors.startswith("error: preprocess: image and text: found both empty; accepted: an image file,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.toml", "--out", "run"], "absent.toml: no such file"),
        (["serve", "absent"], "absent: not a model repository, absent/classifier/config.pbtxt is missing"),
    ],
    ids=["train", "serve"],
)
def test_the_installed_command_fails_without_a_traceback(arguments: list[str], message: str) -> None:
    command = [Path(sys.executable).with_name("diptych"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}")
    assert "Traceback" not in done.stderr


def test_the_commands_take_the_keys(diptych: Diptych, tiny_run: Run, tmp_path: Path) -> None:
    for name in ("ours", "another"):
        write_key_pair(tmp_path / name, Ed25519PrivateKey.generate())
    made, ours = tmp_path / "made", tmp_path / "ours.key"
    options = ["--to", made, "--precision", "fp32", "--sign", ours]
    assert diptych("export", tiny_run.directory, *options)[0] == 0
    activate = ["release", "activate", made, "--require-signature"]
    assert "version 1 serves" in diptych(*activate, tmp_path / "ours.pub")[1]
    assert "is not the signature" in diptych(*activate, tmp_path / "another.pub")[2]
    serve = ["serve", made, "--require-signature", tmp_path / "another.pub"]
    assert "is not the signature" in diptych(*serve)[2]
