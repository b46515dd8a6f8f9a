"""`score_table` by the answers that it gets: which are a row's own, which stop the job, what is kept."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diptych_client import (
    Client,
    ConnectionFailed,
    DiptychError,
    InvalidInput,
    ModelNotReady,
    NotAllowed,
    Overloaded,
    ServerFault,
    score_table,
)
from diptych_client._cli import main
from diptych_client.testing import FakeRequest, FakeServer
from tests.client.fake_triton import Failure, FakeTriton

LABELS = ("food", "tools")


def write_table(folder: Path, rows: list[str], column: str = "description") -> Path:
    path = folder / "items.csv"
    path.write_text(f"{column}\n" + "".join(f"{row}\n" for row in rows), "utf-8")
    return path


def errors_of(out: Path) -> list[dict[str, str]]:
    with out.with_suffix(".errors.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


NOT_A_ROWS_OWN = [
    ConnectionFailed("nobody there"),
    ModelNotReady("loading"),
    Overloaded("the queue is full"),
    ServerFault("stub died"),
    InvalidInput("unexpected inference input 'text'"),  # a request that no version of this server takes
    InvalidInput("headers: found a value", field="headers"),
    NotAllowed("the token has expired"),
]


@pytest.mark.parametrize("error", NOT_A_ROWS_OWN, ids=lambda error: f"{type(error).__name__} {error.message}")
def test_a_failure_that_is_not_a_rows_own_stops_the_job_which_resumes_later(
    error: DiptychError, tmp_path: Path
):
    rows, out = [f"apple {number}" for number in range(1, 41)], tmp_path / "scores.parquet"
    table = write_table(tmp_path, rows)
    fake = FakeServer(LABELS, lambda request: error if request.text in rows[20:] else "food")
    with fake.client() as client:
        with pytest.raises(type(error), match=re.escape(error.message)):
            score_table(client, table, out, concurrency=4, rows_per_checkpoint=8)
        assert not out.exists()
        assert len(list(tmp_path.glob("scores.parquet.parts/*.parquet"))) == 3

        fake.answer = "tools"
        summary = score_table(client, table, out)
    assert (summary.num_scored, summary.num_failed) == (40, 0)
    assert pq.read_table(out)["label"].to_pylist() == ["food"] * 20 + ["tools"] * 20
    assert errors_of(out) == []


def test_a_failure_of_one_row_is_listed_and_the_others_are_scored(tmp_path: Path):
    refused = InvalidInput("preprocess: image: found 13 bytes in no known format", None, "image", "13 bytes")
    table, out = write_table(tmp_path, ["apple", "pear", "plum"]), tmp_path / "scores.parquet"
    fake = FakeServer(LABELS, lambda request: refused if request.text == "pear" else "food")
    with fake.client() as client:
        summary = score_table(client, table, out)
    assert (summary.num_scored, summary.num_failed) == (2, 1)
    assert [(error["row"], error["field"]) for error in errors_of(out)] == [("2", "image")]


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_an_item_that_is_too_large_for_a_proxy_is_its_rows_own_failure(
    triton: FakeTriton, wire: str, tmp_path: Path
):
    table, out = write_table(tmp_path, ["apple", "pear"]), tmp_path / "scores.parquet"
    too_large = Failure("RESOURCE_EXHAUSTED", 413, "Received message larger than max (9 vs. 4)")
    triton.failures = [None, too_large]  # the labels, the first row
    with Client(triton.urls[wire]) as client:
        summary = score_table(client, table, out, concurrency=1)
    assert (summary.num_scored, summary.num_failed) == (1, 1)
    assert errors_of(out)[0]["field"] == "image and text"


def test_a_missing_file_is_its_rows_own_failure_and_a_disk_that_fails_is_not(tmp_path: Path):
    """Linux answers a read of /proc/self/mem as it does one of a broken disk."""
    out = tmp_path / "scores.parquet"
    table = write_table(tmp_path, ["none.png", "/proc/self/mem"], column="image_path")
    with FakeServer(LABELS).client() as client:
        with pytest.raises(OSError, match="Input/output error"):
            score_table(client, table, out, concurrency=1)
        assert [part.stem for part in tmp_path.glob("scores.parquet.parts/*.parquet")] == ["000000000001"]
        table = write_table(tmp_path, ["none.png", "neither.png"], column="image_path")
        summary = score_table(client, table, tmp_path / "others.parquet")
    assert (summary.num_scored, summary.num_failed) == (0, 2)


def test_rows_are_skipped_only_while_the_server_answers_others(tmp_path: Path):
    table, out = write_table(tmp_path, ["apple", "pear", "plum"]), tmp_path / "scores.parquet"

    def answer(request: FakeRequest) -> str:
        if request.text == "pear":
            raise ServerFault("CUDA out of memory")
        return "food"

    fake = FakeServer(LABELS, ServerFault("stub died"))
    with fake.client() as client:
        with pytest.raises(ServerFault, match="stub died"):
            score_table(client, table, out, skip_faults=True)
        fake.answer = answer
        summary = score_table(client, table, out, skip_faults=True)
    assert (summary.num_scored, summary.num_failed) == (2, 1)
    assert [error["reason"] for error in errors_of(out)] == ["CUDA out of memory"]


def test_what_a_checkpoint_renames_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the system's own calls, in their order; a loss of power cannot be had in a test."""
    happened: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        happened.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        happened.append(("rename", Path(source).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    out = tmp_path / "scores.parquet"
    with FakeServer(LABELS).client() as client:
        score_table(client, write_table(tmp_path, ["apple", "pear"]), out, rows_per_checkpoint=1)
    renamed = [(number, name) for number, (what, name) in enumerate(happened) if what == "rename"]
    assert {"000000000001.parquet.tmp", "000000000002.errors.csv.tmp", "scores.parquet.tmp"} <= {
        name for _, name in renamed
    }
    for number, name in renamed:
        assert happened[number - 1] == ("sync", name)
        assert happened[number + 1][0] == "sync"
        assert happened[number + 1][1] in (tmp_path.name, "scores.parquet.parts")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure("UNAVAILABLE", 503, "Server is stopping, scheduler for model has stopped"), 6),
        (Failure("INTERNAL", 500, "stub process died"), 1),
        (Failure("UNAUTHENTICATED", 401, "the token has expired"), 7),
        (Failure("PERMISSION_DENIED", 403, "not for this tenant"), 7),
        (Failure("INVALID_ARGUMENT", 400, "unexpected inference input 'text' for model 'classifier'"), 2),
    ],
)
def test_the_exit_code_says_what_stopped_the_job(
    triton: FakeTriton, failure: Failure, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table, out = write_table(tmp_path, ["apple"] * 3), tmp_path / "scores.parquet"
    command = ["score", str(table), "--out", str(out), "--url", triton.urls["http"], "--timeout-s", "0.5"]
    triton.failures = [None]  # the labels
    triton.failure = failure
    assert main(command) == code
    assert failure.message in capsys.readouterr().err
    assert not out.exists()
    triton.failure = None
    assert main(command) == 0
    assert pq.read_table(out).num_rows == 3


def test_a_job_of_which_not_a_single_row_could_be_scored_says_so(triton: FakeTriton, tmp_path: Path):
    table = write_table(tmp_path, ["none.png"] * 3, column="image_path")
    command = ["score", str(table), "--out", str(tmp_path / "scores.parquet"), "--url", triton.urls["http"]]
    assert main(command) == 2
    assert len(errors_of(tmp_path / "scores.parquet")) == 3


def test_images_in_a_parquet_column_are_sent_as_they_are(tmp_path: Path):
    pq.write_table(pa.table({"image": [b"one", b"two"], "id": [1, 2]}), tmp_path / "items.parquet")
    fake = FakeServer(LABELS)
    with fake.client() as client:
        score_table(client, tmp_path / "items.parquet", tmp_path / "scores.parquet", concurrency=1)
    assert [request.image for request in fake.requests] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('description,id\na,1\n"12 inch ruler,2\n' + "b,3\n" * 50, 3),  # never closed
        ('description,id\na,1\n"12 inch ruler,2\nb,3\n"c",4\n', 3),  # closed by the next one that opens
        ('description,id\n"two\nlines",1\n"He said "hi" to me",2\n', 4),
    ],
)
def test_broken_quotes_are_refused_with_their_line_because_they_would_swallow_rows(
    content: str, line: int, tmp_path: Path
):
    table = tmp_path / "items.csv"
    table.write_text(content, "utf-8")
    fake = FakeServer(LABELS)
    with (
        fake.client() as client,
        pytest.raises(InvalidInput, match=f"the row that begins in line {line} has broken quotes"),
    ):
        score_table(client, table, tmp_path / "scores.parquet")
    assert fake.requests == []


def test_a_huge_cell_is_read(tmp_path: Path):
    table, out = tmp_path / "items.csv", tmp_path / "scores.parquet"
    table.write_text(f"description,notes\napple,{'x' * 200_000}\npear,\n", "utf-8")
    with FakeServer(LABELS).client() as client:
        assert score_table(client, table, out).num_scored == 2
    assert len(pq.read_table(out)["notes"][0].as_py()) == 200_000


def test_a_parquet_file_that_breaks_in_between_keeps_what_was_scored(tmp_path: Path):
    table, out = tmp_path / "items.parquet", tmp_path / "scores.parquet"
    rows = pa.table({"description": [f"apple {number} {os.urandom(500).hex()}" for number in range(64)]})
    pq.write_table(rows, table, row_group_size=16, compression="none", use_dictionary=False)
    whole = table.read_bytes()
    at = pq.ParquetFile(table).metadata.row_group(2).column(0).data_page_offset
    table.write_bytes(whole[:at] + b"\xff" * 64 + whole[at + 64 :])
    with (
        FakeServer(LABELS).client() as client,
        pytest.raises(
            InvalidInput, match=r"^table: found .*items\.parquet: .*; accepted: a readable CSV or Parq"
        ),
    ):
        score_table(client, table, out, rows_per_checkpoint=8, concurrency=1)
    assert list(tmp_path.glob("scores.parquet.parts/*.parquet"))
