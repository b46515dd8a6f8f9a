"""A disk that is full while a version is exported: a message, and everything as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from diptych.run import Run


def export_on_a_small_disk(
    run: Run, mount: Path, size: str, *, version_1: Path | None
) -> subprocess.CompletedProcess[str]:
    """In a mount namespace of its own: a tmpfs, on it what is given as version 1, then an export to it.
    Afterwards a line for each file that is there."""
    mount.mkdir()
    script = """
        mount -t tmpfs -o size="$1" tmpfs "$2" && cd "$2"
        [ -z "$3" ] || cp -r "$3" repository
        "$4" -m diptych.cli export "$5" --to "$2/repository"; status=$?
        find "$2" -mindepth 1 | sed "s,^$2/,found ,"
        exit $status
    """
    arguments = [size, mount, version_1 or "", sys.executable, run.directory]
    return subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "bash",
            "-c",
            script,
            "bash",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def found(output: str) -> set[str]:
    return {line.removeprefix("found ") for line in output.splitlines() if line.startswith("found ")}


def size_kib(repository: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4 for path in repository.rglob("*"))


def test_a_first_export_that_does_not_fit_leaves_nothing(
    tiny_run: Run, exported_repository: Path, tmp_path: Path
) -> None:
    size = f"{int(size_kib(exported_repository) * 0.9)}k"
    ended = export_on_a_small_disk(tiny_run, tmp_path / "disk", size, version_1=None)
    assert ended.returncode == 1
    assert "version 1 could not be added" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert found(ended.stdout) == set()


def test_a_next_version_that_does_not_fit_leaves_the_one_that_is_there(
    tiny_run: Run, exported_repository: Path, tmp_path: Path
) -> None:
    size = f"{int(size_kib(exported_repository) * 1.6)}k"
    ended = export_on_a_small_disk(tiny_run, tmp_path / "disk", size, version_1=exported_repository)
    assert ended.returncode == 1
    assert "version 2 could not be added" in ended.stderr
    there = {path.relative_to(exported_repository.parent) for path in exported_repository.rglob("*")}
    assert {name.replace("repository", exported_repository.name, 1) for name in found(ended.stdout)} == {
        str(path) for path in there
    } | {exported_repository.name}
