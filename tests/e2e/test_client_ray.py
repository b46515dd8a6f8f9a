"""The example for Ray Data, as it stands in the client's documentation, on a local Ray with two workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_picture

from diptych.serving import Server
from diptych_client import Client

EXAMPLE = Path(__file__).parents[2] / "client/examples/ray_score.py"
NUM_ROWS, BAD_ROW = 60, 7
# Nothing is asked of the network, and no dashboard or usage report is started.
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_include_dashboard": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def test_two_actors_score_parquet_and_bad_rows_keep_their_reason(server: Server, tmp_path: Path) -> None:
    write_picture(tmp_path / "warm.png", "warm", 1)
    picture = (tmp_path / "warm.png").read_bytes()
    rows = [
        {"id": number, "image": picture if number % 2 else None, "description": f"a lamp number {number}"}
        for number in range(NUM_ROWS)
    ]
    rows[BAD_ROW]["image"] = b"not a picture"
    (tmp_path / "items").mkdir()
    for part in range(2):
        table = pa.Table.from_pylist(rows[part * NUM_ROWS // 2 : (part + 1) * NUM_ROWS // 2])
        pq.write_table(table, tmp_path / f"items/{part}.parquet")

    command = [sys.executable, str(EXAMPLE), str(tmp_path / "items"), str(tmp_path / "scores")]
    command += ["--url", server.grpc_url, "--actors", "2"]
    done = subprocess.run(
        command, env={**os.environ, **QUIET_RAY}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]

    scores = sorted(pq.read_table(tmp_path / "scores").to_pylist(), key=lambda row: row["id"])
    assert [row["id"] for row in scores] == list(range(NUM_ROWS))
    assert [row["id"] for row in scores if row["error"]] == [BAD_ROW]
    assert "in no known format" in scores[BAD_ROW]["error"]
    with Client(server.grpc_url, timeout_s=30) as client:
        for row in scores[8:10]:
            answer = client.classify(rows[row["id"]]["image"], row["description"])
            assert (row["label"], row["score"]) == (answer.label, pytest.approx(answer.score, abs=1e-5))
