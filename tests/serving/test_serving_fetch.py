"""A pod's first container: it copies a release into an empty directory, and lets nothing else pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diptych_serving.repository.verification import verify_loaded
from tests.helpers.repository_files import lay_out_repository

MODULE = [sys.executable, "-m", "diptych_serving.fetch"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out_repository(tmp_path_factory.mktemp("releases") / "1")


def fetch(
    source: Path | str, to: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*MODULE, str(source), "--to", str(to), "--pause-s", "0.1", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert "Traceback" not in done.stderr
    return done


def test_it_fails_once_and_succeeds_the_next_time_from_the_same_half_filled_directory(
    release: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(release, tmp_path / "half")
    (half / "fusion_head/1/model.pt").unlink()
    to = tmp_path / "models"
    to.mkdir()
    first = fetch(half, to, "--wait-s", "0")
    assert first.returncode == 1
    assert "fusion_head/1/model.pt: missing, though version 1 was exported with it" in first.stderr

    (to / "left_over.py").write_text("raise SystemExit")
    second = fetch(release, to, "--wait-s", "0")
    assert (second.returncode, second.stderr) == (0, "")
    verify_loaded(to)
    assert not (to / "left_over.py").exists()


def test_it_waits_for_a_release_that_is_still_being_copied(release: Path, tmp_path: Path) -> None:
    source, to = tmp_path / "2", tmp_path / "models"
    to.mkdir()
    command = [*MODULE, str(source), "--to", str(to), "--pause-s", "0.2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "2: no such release" in process.stderr.readline()
        assert process.stderr.readline() == "The next attempt is in 0.2 s.\n"
        shutil.copytree(release, tmp_path / ".2").rename(source)
        process.communicate(timeout=60)
    assert process.returncode == 0
    verify_loaded(to)


def test_a_release_that_is_not_there_is_named_with_those_that_are(release: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    done = fetch(release.parent / "7", tmp_path / "models", "--wait-s", "0")
    assert done.returncode == 1
    assert done.stderr == f"error: {release.parent}/7: no such release; {release.parent} holds 1\n"


@pytest.fixture
def store(release: Path, tmp_path: Path) -> dict[str, str]:
    """An environment with an `rclone` whose first copy leaves a file out, and whose second is whole."""
    program = tmp_path / "bin/rclone"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
set -eu
echo "$*" >> {tmp_path}/calls
for to in "$@"; do :; done
cp -r {release}/. "$to"
[ "$(wc -l < {tmp_path}/calls)" -gt 1 ] || rm "$to/text_encoder/1/model.pt"
"""
    )
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def test_a_bucket_is_asked_again_where_a_copy_was_not_whole(store: dict[str, str], tmp_path: Path) -> None:
    to = tmp_path / "models"
    to.mkdir()
    done = fetch(":s3:bucket/releases/1", to, "--wait-s", "60", env=store)
    assert done.returncode == 0
    assert "text_encoder/1/model.pt: missing" in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [f"copy --config=/dev/null --stats=0 :s3:bucket/releases/1 {to}"] * 2


def test_what_rclone_says_is_said(tmp_path: Path) -> None:
    program = tmp_path / "rclone"
    program.write_text("#!/bin/sh\necho 'AccessDenied: no keys' >&2\nexit 3\n")
    program.chmod(0o755)
    to = tmp_path / "models"
    to.mkdir()
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = fetch(":s3:bucket/1", to, "--wait-s", "0", env={**os.environ, "PATH": path})
    assert done.stderr == "error: :s3:bucket/1: rclone ended with status 3: AccessDenied: no keys\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_volume_whose_own_directory_belongs_to_another_user_is_filled(
    release: Path, tmp_path: Path
) -> None:
    # As a pod's emptyDir: another user's, and everybody may write. Root without capabilities is like others.
    to = tmp_path / "models"
    to.mkdir()
    to.chmod(0o777)
    os.chown(to, 65534, 65534)
    source = shutil.copytree(release, tmp_path / "1")
    (source / "tally").chmod(0o555)
    without_rights = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    for _ in range(2):
        command = [*without_rights, *MODULE, str(source), "--to", str(to), "--wait-s", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
