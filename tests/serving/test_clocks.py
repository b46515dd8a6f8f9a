"""The wall clock may jump: nothing that serves or calls reads it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WALL_CLOCK = re.compile(r"\btime\.time\(|\bdatetime\.now\(|\butcnow\(|\btime\.(localtime|gmtime|ctime)\(")


def test_nothing_that_serves_or_calls_reads_the_wall_clock() -> None:
    sources = [
        path
        for directory in (
            "serving/src/diptych_serving/server",
            "client/src/diptych_client",
            "model_repository",
        )
        for path in (ROOT / directory).rglob("*.py")
    ]
    assert [str(path) for path in sources if WALL_CLOCK.search(path.read_text("utf-8"))] == []
