"""Reads and rewrites the small text files of a repository.

A file is rewritten by one rename, so that a crash leaves the old or the new text. Mode and owner are kept,
and a link stays a link, because a server of another user must still be able to read it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

from diptych_serving.errors import UserError

NEW_FILE_MODE = 0o644


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """The same as text. Raises UserError if it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None


def replace_text(path: Path, text: str, like: Path | None = None) -> None:
    """Change a file by one rename. Raises UserError if that fails; the file is then unchanged.

    like  the file whose mode and owner a new file takes
    """
    target = path.resolve()
    unfinished = _unfinished(target)
    try:
        kept = _status(target) or (_status(like) if like else None)
        unfinished.unlink(missing_ok=True)  # a crash left it
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                if kept:
                    _keep_owner(descriptor, kept, path)
                os.fchmod(descriptor, stat.S_IMODE(kept.st_mode) if kept else NEW_FILE_MODE)
                os.fsync(descriptor)
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync_directory(target.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be rewritten ({error.strerror})") from None


def remove(path: Path) -> None:
    """Remove a file, and what an interrupted rewrite left beside it."""
    _unfinished(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def remove_unfinished(path: Path) -> None:
    """Remove what an interrupted rewrite left beside a file."""
    with contextlib.suppress(OSError):
        _unfinished(path.resolve()).unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _keep_owner(descriptor: int, kept: os.stat_result, path: Path) -> None:
    """Set owner and group. Raises UserError if the owner would lose access to the file."""
    now = os.fstat(descriptor)
    if (now.st_uid, now.st_gid) == (kept.st_uid, kept.st_gid):
        return
    try:
        os.fchown(descriptor, kept.st_uid, kept.st_gid)
    except PermissionError:
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, -1, kept.st_gid)
        if not kept.st_mode & stat.S_IROTH:
            raise UserError(
                f"{path}: belongs to {_name(kept.st_uid)}, who could not read it any more after "
                f"{_name(now.st_uid)} had rewritten it. Run this as its owner, or let all read it (chmod o+r)"
            ) from None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
