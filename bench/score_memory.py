"""How much memory `diptych-client score` takes for longer and longer tables, against a real tritonserver.

    python -m bench.score_memory 5000 20000 100000

The server serves the tiny repository of the tests, so the client is what is measured. Each table is scored
by a process of its own. Its peak of resident memory is read from /proc while it runs: what
`wait4` tells counts from before the child has executed its own program, so it is this process's, far above.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from diptych_serving.server import Server, ServerConfig
from tests.helpers.catalogues import write_picture
from tests.helpers.tiny_repository import build_tiny_repository

NUM_IMAGES = 60
LOOK_EVERY_S = 0.1


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [5_000, 20_000, 100_000]
    with tempfile.TemporaryDirectory(prefix="diptych-score-memory-") as root:
        directory = Path(root)
        for number in range(NUM_IMAGES):
            write_picture(directory / f"{number}.png", ("cold", "green", "warm")[number % 3], number)
        repository = build_tiny_repository(directory / "model_repository")
        with Server(repository, ServerConfig.on_free_ports()) as server:
            server.wait_until_ready()
            for num_rows in sizes:
                print(_score(server, directory, num_rows), flush=True)  # noqa: T201


def _score(server: Server, directory: Path, num_rows: int) -> str:
    table, out = directory / f"{num_rows}.csv", directory / f"{num_rows}.parquet"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sku", "image_path", "description"))
        for row in range(num_rows):
            image = f"{row % NUM_IMAGES}.png" if row % 4 else ""
            writer.writerow((row, image, f"a red cat number {row}"))
    command = [sys.executable, "-m", "diptych_client", "score", str(table), "--out", str(out)]
    command += ["--url", server.grpc_url, "--timeout-s", "60"]
    start_s = time.monotonic()
    process = subprocess.Popen(command)
    peak_kib = 0
    while process.poll() is None:
        peak_kib = max(peak_kib, _peak_kib(process.pid))
        time.sleep(LOOK_EVERY_S)
    took_s = time.monotonic() - start_s
    rows = pq.read_table(out, columns=["row"])["row"].to_pylist()
    if process.returncode or rows != list(range(1, num_rows + 1)):
        raise SystemExit(f"{num_rows} rows: status {process.returncode}, {len(rows)} rows in the output")
    speed = f"{took_s:.0f} s, {num_rows / took_s:.0f} rows/s"
    return f"{num_rows:>8,} rows: peak {peak_kib / 1024:.0f} MiB, {speed}"


def _peak_kib(pid: int) -> int:
    """0 after its end."""
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmHWM"].split()[0]) if "VmHWM" in lines else 0


if __name__ == "__main__":
    main()
