"""The example for Ray Data, as it stands in the client's documentation, on a local Ray with two workers.

Each worker has a client, and each client one connection: a proxy counts them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diptych_client import Client
from diptych_serving.server import Server
from tests.helpers.catalogues import write_picture
from tests.helpers.hostile_proxy import HostileProxy

EXAMPLE = Path(__file__).parents[2] / "client/examples/ray_score.py"
# More than one block, so that there is one for each actor.
NUM_ROWS, NUM_ACTORS, BAD_ROW = 600, 2, 7
TIMEOUT_S = 300
# No report to Ray's makers; and, in spite of its name, Ray's ports on loopback alone, on Linux too.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# The example on a Ray that is there already: two cores, little memory, no dashboard.
PROGRAM = """
import runpy, sys
import psutil, ray
ray.init(
    address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20,
    _temp_dir=sys.argv.pop(1), log_to_driver=False,
)
ray.data.DataContext.get_current().wait_for_min_actors_s = 120  # else the first one up may do it all
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
own = psutil.Process()
pids = {process.pid for process in (own, *own.children(recursive=True))}
sockets = [each for each in psutil.net_connections() if each.pid in pids and each.status == "LISTEN"]
print("listening on", *sorted({socket.laddr.ip.removeprefix("::ffff:") for socket in sockets}))
"""


@pytest.fixture
def ray_directory() -> Iterator[str]:
    """Ray keeps sockets in it, whose paths may not be long: pytest's own folder will not do."""
    with tempfile.TemporaryDirectory(prefix="ray-") as directory:
        yield directory


def test_two_actors_score_parquet_and_bad_rows_keep_their_reason(
    server: Server, tmp_path: Path, ray_directory: str
) -> None:
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

    command = [sys.executable, "-c", PROGRAM, ray_directory, str(EXAMPLE)]
    command += [str(tmp_path / "items"), str(tmp_path / "scores"), "--actors", str(NUM_ACTORS)]
    with HostileProxy((server.contact, server.ports.grpc)) as counter:
        done = subprocess.run(
            [*command, "--url", f"grpc://127.0.0.1:{counter.port}"],
            env={**os.environ, **ENVIRONMENT, "HOME": ray_directory},  # where Ray writes its token
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert counter.num_connections == NUM_ACTORS
    assert re.search(r"^listening on 127\.0\.0\.1$", done.stdout, re.MULTILINE), done.stdout

    scores = sorted(pq.read_table(tmp_path / "scores").to_pylist(), key=lambda row: row["id"])
    assert [row["id"] for row in scores] == list(range(NUM_ROWS))
    assert [row["id"] for row in scores if row["error"]] == [BAD_ROW]
    assert "in no known format" in scores[BAD_ROW]["error"]
    with Client(server.grpc_url, timeout_s=30) as client:
        for row in scores[8:10]:
            answer = client.classify(rows[row["id"]]["image"], row["description"])
            assert (row["label"], row["score"]) == (answer.label, pytest.approx(answer.score, abs=1e-5))
