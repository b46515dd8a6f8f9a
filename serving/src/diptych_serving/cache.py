"""Keeps results that can be computed again: a folder for each kind, with one limit on their total size.

A result that cannot be kept is computed again, with one warning. The cache never fails a command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from diptych_serving.errors import UserError

CACHE_ENV, LIMIT_ENV = "DIPTYCH_CACHE", "DIPTYCH_CACHE_GB"
DEFAULT_LIMIT_GB = 20.0
KINDS = {
    "embeddings": "embeddings of whole tables by frozen backbones",
    "pictures": "images of Parquet columns",
    "libpython": "the library that the embedded tritonserver needs",
    "openvino": "exported models, converted for OpenVINO",
}
BOUNDED = ("embeddings", "pictures", "openvino")
UNFINISHED = ".tmp"
ABANDONED_S = 24 * 3600  # a temporary file that was not written to for this long was left by a killed process

_held: dict[Path, int] = {}  # path -> file descriptor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """The space that one kind takes."""

    kind: str
    num_files: int
    num_bytes: int


def cache_root() -> Path:
    """DIPTYCH_CACHE, else diptych/ in XDG_CACHE_HOME, else ~/.cache/diptych. It may not exist yet."""
    if named := os.environ.get(CACHE_ENV):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"


def cache_directory(kind: str) -> Path:
    """The folder of one of KINDS. It may not exist yet."""
    assert kind in KINDS, kind
    return cache_root() / kind


def keep(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file of the cache. If that fails: one warning, and the command continues without it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        _warn_once(path.parent, error.strerror or str(error))
    keep_within_limit()


def forget_damaged(path: Path, reason: object) -> None:
    """Warn that a file is damaged, and remove it, so that it is made again."""
    _warn(f"{path}: damaged, so it is made again ({str(reason).splitlines()[0]})")
    with contextlib.suppress(OSError):
        path.unlink()


def use(path: Path) -> None:
    """Record that a file was used now. The files not used for the longest time are removed first."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def hold(path: Path) -> None:
    """Keep a file while this process lives, even if the cache is full."""
    held = _held.get(path)
    if held is not None and os.path.samestat(os.fstat(held), path.stat()):
        return
    if held is not None:
        os.close(held)  # of a file that was there before
    _held[path] = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):  # a filesystem without locks
        fcntl.flock(_held[path], fcntl.LOCK_SH | fcntl.LOCK_NB)


def keep_within_limit() -> None:
    """Remove the least recently used files until the rest is within DIPTYCH_CACHE_GB."""
    files = [file for kind in BOUNDED for file in _files(kind)]
    excess = sum(status.st_size for _, status in files) - limit_bytes()
    for path, status in sorted(files, key=lambda file: file[1].st_atime_ns):
        is_abandoned = path.suffix == UNFINISHED and time.time() - status.st_mtime > ABANDONED_S
        if is_abandoned or (excess > 0 and path.suffix != UNFINISHED and not _is_held(path)):
            with contextlib.suppress(OSError):
                path.unlink()
                excess -= status.st_size


def limit_bytes() -> int:
    """Raises UserError if DIPTYCH_CACHE_GB is not a number."""
    text = os.environ.get(LIMIT_ENV) or str(DEFAULT_LIMIT_GB)
    try:
        return round(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"{LIMIT_ENV}={text}: expected a number of gigabytes, such as 20") from None


def usage() -> list[Usage]:
    """Of each kind."""
    return [
        Usage(
            kind=kind,
            num_files=len(files := _files(kind)),
            num_bytes=sum(status.st_size for _, status in files),
        )
        for kind in KINDS
    ]


def clear() -> list[Path]:
    """Remove all files. Returns those that stay because another process uses them."""
    left = []
    for kind in KINDS:
        for path, _ in _files(kind):
            if _is_held(path):
                left.append(path)
            else:
                path.unlink(missing_ok=True)
    return left


def _files(kind: str) -> list[tuple[Path, os.stat_result]]:
    """Other processes may remove some meanwhile; a folder that cannot be read has none."""
    files = []
    with contextlib.suppress(OSError):
        for path in cache_directory(kind).rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    files.append((path, status))
    return files


def _is_held(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@functools.cache
def _warn_once(directory: Path, reason: str) -> None:
    _warn(
        f"{directory}: nothing can be kept there ({reason}), so it is computed again each time. "
        f"{CACHE_ENV} names another folder"
    )


def _warn(message: str) -> None:
    from diptych_serving.progress import warn  # needs rich, which images that only serve do without

    warn(message)
