"""A disk that is full while a version is exported: a message, and everything as it was."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.runs.run import Run

# In a mount namespace of its own, for each disk: a tmpfs, and on it what is given as version 1. Then the
# exports, by one process, because each would spend seconds on importing torch; then what is there.
SCRIPT = """
python=$1 program=$2 run=$3; shift 3
mounts=()
while [ $# -gt 0 ]; do
    mount -t tmpfs -o size="$2" tmpfs "$1"
    [ -z "$3" ] || cp -r "$3" "$1/repository"
    mounts+=("$1"); shift 3
done
"$python" -c "$program" "$run" "${mounts[@]/%//repository}" || exit
for mount in "${mounts[@]}"; do find "$mount" -mindepth 1 -printf 'found %p\\n'; done
"""
EXPORTS = """
import sys
from diptych.cli.main import main as cli
run, *repositories = sys.argv[1:]
for repository in repositories:
    sys.argv = ["diptych", "export", run, "--to", repository, "--precision", "fp32"]
    try:
        cli()
    except SystemExit as ended:
        print("ended", repository, ended.code)
"""


@dataclasses.dataclass(frozen=True)
class Exports:
    """To a disk where there was nothing, and to one with version 1 on it."""

    first: Path
    second: Path
    output: list[str]
    errors: str

    def found(self, disk: Path) -> set[str]:
        start = f"found {disk}/"
        return {line.removeprefix(start) for line in self.output if line.startswith(start)}


@pytest.fixture(scope="module")
def exports(tiny_run: Run, exported_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    disks = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    sizes = [f"{int(size_kib(exported_repository) * share)}k" for share in (0.9, 1.6)]
    there = ["", exported_repository]
    arguments = [part for disk in zip(disks, sizes, there, strict=True) for part in disk]
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "bash", "-c", SCRIPT, "bash"),
            *map(str, [sys.executable, EXPORTS, tiny_run.directory, *arguments]),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Exports(*disks, done.stdout.splitlines(), done.stderr)


def size_kib(repository: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4 for path in repository.rglob("*"))


def test_a_first_export_that_does_not_fit_leaves_nothing(exports: Exports) -> None:
    repository = exports.first / "repository"
    assert f"ended {repository} 1" in exports.output
    assert f"{repository}: version 1 could not be added" in exports.errors
    assert "Traceback" not in exports.errors
    assert exports.found(exports.first) == set()


def test_a_next_version_that_does_not_fit_leaves_the_one_that_is_there(
    exports: Exports, exported_repository: Path
) -> None:
    repository = exports.second / "repository"
    assert f"ended {repository} 1" in exports.output
    assert f"{repository}: version 2 could not be added" in exports.errors
    there = {
        Path("repository") / path.relative_to(exported_repository) for path in exported_repository.rglob("*")
    }
    assert exports.found(exports.second) == {"repository", *map(str, there)}
