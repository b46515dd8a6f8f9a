"""The directory of a run: RUN/unfinished during training, then RUN.

Training writes checkpoint, curves and at the end all files to RUN/unfinished. Then that folder replaces RUN
in one rename, so RUN holds a complete run or none. A previous run stays until then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from diptych.runs.checkpoint import CHECKPOINT_FILE, remove_checkpoint
from diptych_serving.errors import UserError
from diptych_serving.progress import console

UNFINISHED = "unfinished"
LOCK_FILE = "training.lock"
# Files that training and evaluation write into a run, now or in earlier versions. They belong to the run.
RUN_ENTRIES = frozenset(
    {
        UNFINISHED,
        LOCK_FILE,
        "checkpoint.pt",
        "checkpoint.pt.tmp",
        "classification_report.txt",
        "config.toml",
        "confusion_matrix.json",
        "confusion_matrix.png",
        "examples.parquet",
        "fingerprint.json",
        "history.json",
        "image_backbone",
        "labels.txt",
        "metrics.json",
        "model.safetensors",
        "model.safetensors.tmp",
        "preprocessing.json",
        "report.html",
        "tensorboard",
        "text_backbone",
        "tokenizer.json",
        "training_curves.png",
    }
)


@contextlib.contextmanager
def begin_run(out: Path) -> Iterator[Path]:
    """RUN/unfinished, locked by this process until the block ends.

    raises  UserError if nothing can be written, other files are there, or another process trains there
    """
    out = out.resolve()
    _take_back(out)
    _require_place_of_a_run(out)
    try:
        directory = out / UNFINISHED
        directory.mkdir(parents=True, exist_ok=True)
        # It is renamed within the parent folder of RUN.
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-").cleanup()
        lock = _lock(directory / LOCK_FILE)
    except OSError as error:
        raise UserError(f"--out {out}: no run can be written there: {error.strerror}") from None
    with lock, _removed_unless_resumable(out):
        if (out / "model.safetensors").is_file():
            console.print(
                f"{out} holds a finished run. It is replaced when this one is finished.",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        yield directory


def finish_run(out: Path) -> None:
    """Replace RUN by RUN/unfinished. Other files in RUN, such as the user's own, are moved into it."""
    out = out.resolve()
    replaced = _replaced(out)
    for path in (out / UNFINISHED).rglob("*"):
        if path.is_file():
            _reach_disk(path)
    out.rename(replaced)
    try:
        (replaced / UNFINISHED).rename(out)
    except OSError:
        replaced.rename(out)
        raise
    for path in replaced.iterdir():
        if path.name not in RUN_ENTRIES:
            path.rename(out / path.name)
    shutil.rmtree(replaced)
    remove_checkpoint(out)
    (out / LOCK_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def _removed_unless_resumable(out: Path) -> Iterator[None]:
    """After an error, keep RUN/unfinished if it has a checkpoint; else restore RUN."""
    try:
        yield
    except BaseException:
        if not (out / UNFINISHED / CHECKPOINT_FILE).is_file():
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _take_back(out: Path) -> None:
    """After a kill between the two renames of `finish_run`."""
    with contextlib.suppress(OSError):
        if not out.exists():
            _replaced(out).rename(out)


def _require_place_of_a_run(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a directory for the run")
    if Path.cwd().is_relative_to(out) or os.path.ismount(out):
        what = "a mount point" if os.path.ismount(out) else "the current directory, or above it"
        raise UserError(f"--out {out}: is {what}, which cannot be replaced; name a directory below it")
    if _replaced(out).exists():
        shutil.rmtree(_replaced(out))  # a kill after the last rename of `finish_run`
    others = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if others and not RUN_ENTRIES.intersection(others):
        found = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise UserError(f"--out {out}: holds {found} and no run; name a new or an empty directory")


def _lock(path: Path) -> BinaryIO:
    """The open file, which the kernel unlocks when this process ends. Raises UserError if it is locked."""
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode("utf-8", "replace") or "another process"
            file.close()
            raise UserError(
                f"--out {path.parent.parent}: {holder} is training there. Wait for it, or name another --out"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its holder has finished, and its folder is now the run
        path.parent.mkdir(exist_ok=True)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    file.flush()
    return file


def _reach_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
