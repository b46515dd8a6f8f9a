"""`diptych-client score` against the real server: every row once, whatever happens on the way."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diptych_client import Answer, Client, ConnectionFailed, InvalidInput, ServerFault, score_table
from diptych_client._cli import main
from diptych_serving.server import Server
from tests.helpers.catalogues import make_catalogue, write_picture

BAD = 5  # the row of the tables below whose picture is not one


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Forty rows in a CSV, one of them bad."""
    path = make_catalogue(tmp_path / "items", 40)
    lines = path.read_text("utf-8").splitlines()
    lines[BAD] = f"{path.name},words beside a picture that is none,warm"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def score(server: Server, table: Path, out: Path, *options: str) -> int:
    return main(
        ["score", str(table), "--out", str(out), "--url", server.grpc_url, "--timeout-s", "30", *options]
    )


def errors_of(out: Path) -> list[dict[str, str]]:
    with out.with_suffix(".errors.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def parts_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def test_every_row_is_scored_or_listed_with_its_reason(
    server: Server, table: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "scores.parquet"
    assert score(server, table, out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_scored"], summary["num_failed"]) == (39, 1)

    scores = pq.read_table(out).to_pylist()
    assert [row["row"] for row in scores] == [number for number in range(1, 41) if number != BAD]
    (error,) = errors_of(out)
    assert (error["row"], error["field"]) == (str(BAD), "image")
    assert "in no known format" in error["reason"]
    assert not parts_of(out).exists()

    with Client(server.http_url, timeout_s=30) as client:
        answer = client.classify(
            table.parent / scores[0]["image_path"] if scores[0]["image_path"] else None,
            scores[0]["description"],
        )
    assert scores[0]["label"] == answer.label
    assert scores[0]["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)
    assert scores[0]["category"] in answer.probabilities


def test_a_killed_job_goes_on_without_losing_or_repeating_a_row(server: Server, tmp_path: Path) -> None:
    out, rows = tmp_path / "scores.parquet", 800
    table = tmp_path / "items.csv"
    table.write_text(
        "sku,description\n" + "".join(f"{row},leaf number {row}\n" for row in range(rows)), "utf-8"
    )
    command = [sys.executable, "-m", "diptych_client", "score", str(table), "--out", str(out)]
    command += ["--checkpoint-rows", "40", "--timeout-s", "30"]
    environment = {**os.environ, "DIPTYCH_URL": server.grpc_url}

    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        give_up_at = time.monotonic() + 60
        while len(list(parts_of(out).glob("*.parquet"))) < 2 and time.monotonic() < give_up_at:
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.005)
    finally:
        job.send_signal(signal.SIGKILL)
        job.communicate()
    before = sorted(parts_of(out).glob("*.parquet"))
    assert before
    assert not out.exists()
    (parts_of(out) / f"{rows:012}.parquet.tmp").write_bytes(b"cut off by the kill")

    progress: list[int] = []
    with Client(server.grpc_url, timeout_s=30) as client:
        score_table(client, table, out, on_progress=lambda num_done, _: progress.append(num_done))
    assert progress[0] == int(before[-1].stem) < rows
    scores = pq.read_table(out)
    assert scores["row"].to_pylist() == list(range(1, rows + 1))
    assert scores["sku"].to_pylist() == [str(row) for row in range(rows)]
    assert errors_of(out) == []
    assert not parts_of(out).exists()


class CutOffClient(Client):
    """Loses its server after twenty answers."""

    def classify(self, *args: object, **kwargs: object) -> Answer:
        self.num_answers = getattr(self, "num_answers", 0) + 1
        if self.num_answers > 20:
            raise ConnectionFailed("the cable was cut")
        return super().classify(*args, **kwargs)


def test_a_server_that_is_gone_stops_the_job_and_keeps_what_was_answered(
    server: Server, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    with (
        CutOffClient(server.grpc_url, timeout_s=30) as client,
        pytest.raises(ConnectionFailed, match="the cable was cut"),
    ):
        score_table(client, table, out, concurrency=1)
    assert [int(part.stem) for part in parts_of(out).glob("*.parquet")] == [20]

    assert score(server, table, out) == 0
    numbers = pq.read_table(out)["row"].to_pylist() + [int(error["row"]) for error in errors_of(out)]
    assert sorted(numbers) == list(range(1, 41))


def test_pictures_may_lie_in_the_parquet_file(server: Server, tmp_path: Path) -> None:
    write_picture(tmp_path / "warm.png", "warm", 1)
    picture = (tmp_path / "warm.png").read_bytes()
    rows = [
        {"id": 10, "image": {"bytes": picture, "path": None}, "description": "a lamp"},
        {"id": 11, "image": {"bytes": None, "path": "warm.png"}, "description": None},
        {"id": 12, "image": None, "description": "snow"},
        {"id": 13, "image": None, "description": " "},
        {"id": 14, "image": {"bytes": b"GIF", "path": None}, "description": None},
    ]
    table, out = tmp_path / "items.parquet", tmp_path / "scores.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=2)
    assert score(server, table, out, "--checkpoint-rows", "1") == 0

    scores = pq.read_table(out)
    assert "image" not in scores.column_names
    assert scores["id"].to_pylist() == [10, 11, 12]
    assert [(error["row"], error["field"]) for error in errors_of(out)] == [
        ("4", "image and text"),
        ("5", "image"),
    ]

    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.Table.from_pylist([{"image": picture, "description": "a lamp"}]), plain)
    assert score(server, plain, tmp_path / "plain_scores.parquet") == 0
    again = pq.read_table(tmp_path / "plain_scores.parquet")["probabilities"][0].as_py()
    assert again == pytest.approx(scores["probabilities"][0].as_py(), abs=1e-5)


def test_rows_that_cannot_be_read_are_listed_and_harm_no_others(server: Server, tmp_path: Path) -> None:
    table, out = tmp_path / "items.csv", tmp_path / "scores.parquet"
    table.write_bytes(b'\xef\xbb\xbfid,description\n1,leaf\n2,a,b\n\n3,caf\xe9\n4\n5,"two\nlines"\n')
    assert score(server, table, out) == 0
    assert pq.read_table(out)["id"].to_pylist() == ["1", "5"]
    assert [(error["row"], error["reason"]) for error in errors_of(out)] == [
        ("2", "row: found 3 cells; accepted: 2, as in the header"),
        ("3", "description: found bytes that are not UTF-8; accepted: UTF-8"),
        ("4", "row: found 1 cells; accepted: 2, as in the header"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.tsv", b"description\nleaf\n", "a file that ends in .csv or .parquet"),
        ("items.csv", b"words\nleaf\n", "with the columns words; accepted: one or more of image_path"),
        ("items.csv", b"", r"with the columns \(none\)"),
        ("items.csv", b"description,label\nleaf,x\n", "columns label; accepted: other names"),
        ("items.csv", b"description,description\n", r"columns named twice: \['description'\]"),
        ("items.parquet", b"no Parquet", "accepted: a readable CSV or Parquet file"),
        ("none.csv", None, "No such file"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_any_row_is_asked(
    server: Server, tmp_path: Path, capsys, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert score(server, tmp_path / name, tmp_path / "scores.parquet") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not parts_of(tmp_path / "scores.parquet").exists()


def test_an_output_that_exists_is_not_overwritten(
    server: Server, table: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "scores.parquet"
    out.write_text("last month's")
    assert score(server, table, out) == 2
    assert "scores.parquet, which exists; accepted: a new file" in capsys.readouterr().err
    assert out.read_text() == "last month's"


def test_two_jobs_do_not_write_one_output(server: Server, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    refusals: list[str] = []
    with Client(server.grpc_url, timeout_s=30) as client:

        def start_another(num_done: int, _: int) -> None:
            if num_done == 7:
                with pytest.raises(InvalidInput) as refused:
                    score_table(client, table, out)
                refusals.append(refused.value.message)

        summary = score_table(client, table, out, on_progress=start_another)
    assert refusals == [
        f"--out: found {out}, which another job is writing; accepted: another file, or none but that job"
    ]
    assert (summary.num_scored, summary.num_failed) == (39, 1)
    assert sorted(path.name for path in tmp_path.glob("scores*")) == ["scores.errors.csv", "scores.parquet"]


class RelabelledClient(Client):
    """A release with other labels comes after twenty answers."""

    def classify(self, *args: object, **kwargs: object) -> Answer:
        self.num_answers = getattr(self, "num_answers", 0) + 1
        answer = super().classify(*args, **kwargs)
        if self.num_answers <= 20:
            return answer
        renamed = {f"new {label}": value for label, value in answer.probabilities.items()}
        return dataclasses.replace(answer, probabilities=renamed, model_version="2")


def test_other_labels_in_mid_job_stop_it(server: Server, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    with (
        RelabelledClient(server.grpc_url, timeout_s=30) as client,
        pytest.raises(
            InvalidInput,
            match=r"answers of version 2 with the labels new cold, .*began with: cold, green, warm",
        ),
    ):
        score_table(client, table, out, concurrency=1)
    assert [int(part.stem) for part in parts_of(out).glob("*.parquet")] == [20]


def test_checkpoints_of_another_table_are_not_gone_on_from(
    server: Server, table: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "scores.parquet"
    assert score(server, table, out) == 0
    out.rename(tmp_path / "kept.parquet")
    parts_of(out).mkdir()
    (parts_of(out) / "job.json").write_text(json.dumps({"table": "another.csv"}))
    assert score(server, table, out) == 2
    assert "of another job (table, size_bytes, modified_ns, columns changed)" in capsys.readouterr().err


class BreakingClient(Client):
    """Its server breaks on one row."""

    def classify(self, image: object = None, text: str | None = None, **others: object) -> Answer:
        if text == "leaf 3":
            raise ServerFault("stub died")
        return super().classify(image, text, **others)


def test_a_row_that_breaks_the_server_stops_the_job_unless_told_otherwise(
    server: Server, tmp_path: Path
) -> None:
    table, out = tmp_path / "items.csv", tmp_path / "scores.parquet"
    table.write_text("description\n" + "".join(f"leaf {row}\n" for row in range(1, 7)), "utf-8")
    with BreakingClient(server.grpc_url, timeout_s=30) as client:
        for _ in range(2):  # again and again at the same row
            with pytest.raises(ServerFault, match="stub died"):
                score_table(client, table, out)
        summary = score_table(client, table, out, skip_faults=True)
    assert (summary.num_scored, summary.num_failed) == (5, 1)
    assert errors_of(out) == [{"row": "3", "field": "", "reason": "stub died"}]


def test_a_table_that_shrinks_under_the_job_ends_it(server: Server, tmp_path: Path) -> None:
    table, out = tmp_path / "items.csv", tmp_path / "scores.parquet"
    table.write_text("description\n" + "leaf\n" * 6, "utf-8")

    def shrink(num_done: int, _: int) -> None:
        if num_done == 0:
            table.write_text("description\nleaf\nleaf\n", "utf-8")

    with (
        Client(server.grpc_url, timeout_s=30) as client,
        pytest.raises(InvalidInput, match="2 of 6 rows left; accepted: a table that does not change"),
    ):
        score_table(client, table, out, on_progress=shrink)


def test_checkpoints_without_rows_are_refused(server: Server, table: Path, tmp_path: Path, capsys) -> None:
    assert score(server, table, tmp_path / "scores.parquet", "--checkpoint-rows", "0") == 2
    assert "--checkpoint-rows: found 0; accepted: 1 or more" in capsys.readouterr().err
