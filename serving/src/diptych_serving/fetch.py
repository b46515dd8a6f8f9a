"""Copies a release to where a pod serves it from: `python3 -m diptych_serving.fetch SOURCE`.

The first container of a pod. Each attempt starts from an empty directory, copies, and verifies the copy.
Where that fails, the next attempt starts from empty again: a release that was still being uploaded, or was
cut off, arrives in the end, and half of one is never served. An orchestrator repeats only the step that
failed, so that two containers, one to copy and one to verify, would verify the same half for ever.

SOURCE is a directory, or what rclone calls a remote, such as `:s3:BUCKET/PREFIX`: rclone then reads the rest
(region, keys) from the environment, as its documentation says.

Standard library only; but `--require-signature` needs `cryptography`.
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
            # Contents without modes: the source's could hinder, and the volume's own directory is not ours.
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
        description="Copy a release into an empty directory and verify it; repeat until it is whole.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("source", help="a directory, or a remote as rclone names it, such as :s3:BUCKET/PREFIX")
    add("--to", default=MODELS, type=Path, help="what is in it is removed")
    add("--require-signature", type=Path, metavar="PEM", help="only what this public key's owner has signed")
    add("--wait-s", default=WAIT_S, type=float, help="for the release to be there and whole")
    add("--pause-s", default=PAUSE_S, type=float, help="between two attempts")
    return parser


if __name__ == "__main__":
    main()
