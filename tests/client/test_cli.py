"""The command `diptych-client`: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych_client import InvalidInput, Tls
from diptych_client._cli import main
from diptych_client._environment import headers_of, tls_of
from tests.client.fake_triton import Failure, FakeTriton


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTriton]:
    with FakeTriton().running() as fake:
        monkeypatch.setenv("DIPTYCH_URL", fake.urls["http"])
        yield fake


def test_an_answer_is_a_label_a_score_and_a_bar_for_each_label(triton: FakeTriton, capsys):
    assert main(["classify", "--text", "A blue shirt"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "clothing 0.900",
        "",
        "clothing      0.900  " + "█" * 27,
        "home: garden  0.069  ██",
        "electronics   0.031  █",
        "books         0.000",
    ]


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_json_holds_the_whole_answer(triton: FakeTriton, capsys, tmp_path: Path, transport: str):
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"picture")
    assert main(["classify", str(picture), "--url", triton.urls[transport], "--json"]) == 0

    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == "clothing"
    assert list(answer["probabilities"]) == triton.labels
    assert answer["request_id"] == triton.received[0].request_id
    assert triton.received[0].inputs["image"][2][4:] == b"picture"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_gone_ends_the_command_without_a_word(triton: FakeTriton, options: list[str]):
    """As in `diptych-client labels | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "diptych_client", "labels", "--timeout-s", "20", *options]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_labels_are_listed_in_order(triton: FakeTriton, capsys):
    assert main(["labels"]) == 0
    assert capsys.readouterr().out.splitlines() == triton.labels


def test_health_is_an_inference(triton: FakeTriton, capsys):
    assert main(["health"]) == 0
    assert capsys.readouterr().out.startswith("ready: model version 1, 4 labels, ")
    assert triton.received


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure("INTERNAL", 500, "stub died"), 1),
        (Failure("INVALID_ARGUMENT", 400, "preprocess: image: found a text file"), 2),
        (Failure("UNAVAILABLE", 503, "Exceeds maximum queue size"), 5),
        (Failure("NOT_FOUND", 404, "Request for unknown model: 'classifier' is not found"), 6),
        (Failure("UNAUTHENTICATED", 401, "the token has expired"), 7),
    ],
)
def test_a_failure_goes_to_stderr_and_into_the_exit_code(
    triton: FakeTriton, capsys, failure: Failure, code: int
):
    triton.failure = failure
    assert main(["classify", "--text", "words", "--timeout-s", "1"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"diptych-client: {failure.message} [request ")


def test_nobody_at_the_address_is_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("DIPTYCH_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("DIPTYCH_TIMEOUT_S", "0.5")
    assert main(["classify", "--text", "words"]) == 3
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_a_timeout_in_the_environment_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("DIPTYCH_TIMEOUT_S", "0")
    assert main(["classify", "--text", "words"]) == 2
    assert "timeout_s" in capsys.readouterr().err


def test_a_missing_file_is_named(triton: FakeTriton, capsys):
    assert main(["classify", "no/such.jpg"]) == 2
    assert "image: found 'no/such.jpg' (No such file or directory)" in capsys.readouterr().err


def test_help_documents_the_exit_codes(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "3  no connection" in capsys.readouterr().out


def test_the_command_reads_a_picture_from_standard_input(triton: FakeTriton):
    done = subprocess.run(
        [sys.executable, "-m", "diptych_client", "classify", "-", "--timeout-s", "20"],
        input=b"picture",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"clothing 0.900")
    assert b"##" in done.stdout  # bars that this terminal can print
    assert triton.received[0].inputs["image"][2][4:] == b"picture"


def test_explain_says_what_each_modality_alone_would_say(triton: FakeTriton, capsys, tmp_path: Path):
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"picture")
    assert main(["classify", str(picture), "--text", "words", "--explain"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "image only: clothing 0.900",
        "text only: clothing 0.900",
        "decided by: either",
    ]
    sent = sorted(
        (bool(request.inputs["image"][2][4:]), bool(request.inputs["text"][2][4:]))
        for request in triton.received
        if request.inputs["text"][2][4:] != b"labels"
    )
    assert sent == [(False, True), (True, False), (True, True)]


def test_below_the_minimal_score_there_is_no_label(triton: FakeTriton, capsys):
    assert main(["classify", "--text", "words", "--min-score", "0.95"]) == 0
    assert capsys.readouterr().out.startswith("undecided: 0.900\n")


def test_headers_come_from_the_environment(triton: FakeTriton, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIPTYCH_HEADERS", "authorization=Bearer a%2Cb==, x-tenant=shop")
    assert headers_of(os.environ) == {"authorization": "Bearer a,b==", "x-tenant": "shop"}
    assert main(["classify", "--text", "words"]) == 0


def test_headers_without_a_value_are_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("DIPTYCH_HEADERS", "a-secret-token")
    assert main(["labels"]) == 2
    printed = capsys.readouterr().err
    assert "DIPTYCH_HEADERS: found no '=' in part 1" in printed
    assert "secret" not in printed


def test_certificates_come_from_the_environment():
    assert tls_of({}) is None
    assert tls_of({"DIPTYCH_CA_FILE": "ca.pem"}) == Tls(ca_file="ca.pem")
    with pytest.raises(InvalidInput, match="one of certificate_file and key_file"):
        tls_of({"DIPTYCH_KEY_FILE": "key.pem"})


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [(["score", "a.csv", "--out", "b.parquet"], "pyarrow", "score"), (["demo"], "gradio", "demo")],
)
def test_a_command_without_its_packages_names_the_extra(
    command: list[str], package: str, extra: str, capsys, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in sys.modules if name.startswith(f"diptych_client._{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(command) == 2
    expected = (
        f"diptych-client: {package} is not installed; get it with: pip install 'diptych-client[{extra}]'\n"
    )
    assert capsys.readouterr().err == expected
