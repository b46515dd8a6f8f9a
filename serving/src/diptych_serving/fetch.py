"""Copies a release to where a pod serves it from: `python3 -m diptych_serving.fetch SOURCE`.

It is the first container of a pod. Each attempt starts with an empty directory, copies, and verifies the
copy. So an incomplete upload is tried again until it is complete, and never served. Copying and verifying
are one container, because an orchestrator repeats only the container that failed: a verifier alone would
check the same incomplete copy forever.

SOURCE is a directory, or an rclone remote such as `:s3:BUCKET/PREFIX`. rclone reads region and keys from the
environment, as its documentation says.

Standard library only; `--require-signature` needs `cryptography`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from diptych_serving.errors import UserError
from diptych_serving.repository.verification import verify_loaded

MODELS = Path("/models")
WAIT_S = 600.0
PAUSE_S = 10.0
RCLONE = "rclone"


def main() -> None:
    options = _parser().parse_args()
    ends_at_s = time.monotonic() + options.wait_s
    while True:
        try:
            fetch(options.source, options.to, options.require_signature)
            sys.stdout.write(f"{options.to}: {options.source}, as its manifest says.\n")
            return
        except UserError as error:
            if time.monotonic() + options.pause_s > ends_at_s:
                sys.exit(f"error: {error}")
            sys.stderr.write(f"{error}\nThe next attempt is in {options.pause_s:g} s.\n")
            sys.stderr.flush()
            time.sleep(options.pause_s)


def fetch(source: str, to: Path, public_key: Path | None = None) -> None:
    """Empty a directory, copy a release into it, verify it. Raises UserError."""
    try:
        _empty(to)
        if source.startswith(":"):
            _copy_from_remote(source, to)
        else:
            _copy_directory(Path(source), to)
    except OSError as error:
        raise UserError(f"{source}: could not be copied to {to}: {error}") from error
    verify_loaded(to, public_key)


def _empty(directory: Path) -> None:
    """The directory itself stays: it may be a volume."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _copy_directory(source: Path, to: Path) -> None:
    if not source.is_dir():
        there = source.parent.iterdir() if source.parent.is_dir() else []
        names = ", ".join(sorted(path.name for path in there if not path.name.startswith("."))) or "nothing"
        raise UserError(f"{source}: no such release; {source.parent} holds {names}")
    for directory, _, files in os.walk(source, followlinks=True):
        target = to / Path(directory).relative_to(source)
        target.mkdir(exist_ok=True)
        for name in files:
            # Without file modes: the source's may forbid reading, and the volume's directory is not ours to
            # change.
            shutil.copyfile(Path(directory, name), target / name)


def _copy_from_remote(remote: str, to: Path) -> None:
    """`copy` compares each file with the store's checksum as it goes."""
    command = [RCLONE, "copy", "--config=/dev/null", "--stats=0", remote, str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise UserError(f"{remote}: rclone ended with status {done.returncode}: {done.stderr.strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m diptych_serving.fetch",
        description="Copy a release into an empty directory and verify it; repeat until it is complete.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("source", help="a directory, or an rclone remote such as :s3:BUCKET/PREFIX")
    add("--to", default=MODELS, type=Path, help="the directory to fill; its contents are removed first")
    add(
        "--require-signature",
        type=Path,
        metavar="PEM",
        help="accept only releases signed with the key of this public key",
    )
    add("--wait-s", default=WAIT_S, type=float, help="how long to wait for a complete release")
    add("--pause-s", default=PAUSE_S, type=float, help="between two attempts")
    return parser


if __name__ == "__main__":
    main()
