"""A short run of tests/serving/fuzz_preprocessing.py, whose header says what ends it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUM_RUNS = 1500
# A program's peak of memory begins with that of the process which starts it (Linux), and pytest's is more
# than the fuzzer allows. A shell in between has none to hand on; the `exit` keeps it in between.
FROM_A_SMALL_PROCESS = ("sh", "-c", '"$@"; exit $?', "sh")


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has wheels for Linux on x86_64 alone"
)
def test_nothing_but_invalid_input_comes_of_mutated_files(tmp_path: Path) -> None:
    arguments = [f"-runs={NUM_RUNS}", "-seed=7", "-max_len=20000"]
    done = subprocess.run(
        [
            *FROM_A_SMALL_PROCESS,
            sys.executable,
            "-m",
            "tests.serving.fuzz_preprocessing",
            *arguments,
            tmp_path / "corpus",
        ],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert re.search(rf"Done {NUM_RUNS} (runs|in)", done.stderr), done.stderr[-2000:]
