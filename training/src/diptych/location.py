"""The location of a file: on this machine, or on any filesystem of fsspec."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

# May be a chain, such as zip://train.csv::s3://bucket/all.zip: its first path is the file's own.
URL = re.compile(
    r"(?P<head>(?:[A-Za-z][\w.+-]*::)*[A-Za-z][\w.+-]*://)(?P<path>.*?)(?P<tail>::.*)?", re.DOTALL
)

NOT_FOUND = (404, 410)  # of HTTP. fsspec also reports a host without an answer as a missing file.

T = TypeVar("T")


class Location(str):
    """A path on this machine, or a URL such as s3://bucket/train.parquet.

    A string, so that millions are cheap to hold and to send to worker processes. No filesystem is kept:
    fsspec has one per process, so a fork never shares a connection.
    """

    __slots__ = ()

    @classmethod
    def resolve(cls, text: str) -> Location:
        """A URL stays as it is; a local path becomes absolute."""
        return cls(text) if URL.fullmatch(text) else cls(Path(text).expanduser().absolute())

    @property
    def is_url(self) -> bool:
        """Whether fsspec opens it, not the operating system."""
        return URL.fullmatch(self) is not None

    @property
    def name(self) -> str:
        """The file's own name, without its folders."""
        match = URL.fullmatch(self)
        return posixpath.basename(match["path"] if match else self)

    def beside(self, name: str) -> Location:
        """`name` if it is absolute or a URL, else the file of that name beside this one."""
        if URL.fullmatch(name) or os.path.isabs(name):
            return Location(name)
        match = URL.fullmatch(self)
        if not match:
            return Location(Path(self).parent / name)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(match["path"]), name))
        return Location(f"{match['head']}{path}{match['tail'] or ''}")

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open it for reading. Raises OSError for every exception of the filesystem."""
        if not self.is_url:
            with Path(self).open("rb") as local:
                yield local
            return
        # Keep a reference until the end: an unreferenced archive closes itself and its files.
        _archive, file = self._through_fsspec(lambda fs, path: (fs, fs.open(path, "rb")))
        with file:
            yield file

    def read_bytes(self) -> bytes:
        """The whole file. Raises OSError as `open` does, and ValueError for a path that holds a NUL."""
        if not self.is_url:
            return Path(self).read_bytes()
        return self._through_fsspec(lambda fs, path: fs.cat_file(path))

    def version(self) -> str:
        """A text that changes with the file, as far as known without reading it. Raises OSError."""
        if not self.is_url:
            status = Path(self).stat()
            return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
        return self._through_fsspec(lambda fs, path: repr(sorted(fs.info(path).items())))

    def _through_fsspec(self, act: Callable[[Any, str], T]) -> T:
        from fsspec.core import url_to_fs

        try:
            return act(*url_to_fs(str(self)))
        except FileNotFoundError as error:  # each filesystem has its own message, or none
            cause = error.__cause__
            if cause is not None and getattr(cause, "status", NOT_FOUND[0]) not in NOT_FOUND:
                raise OSError(str(cause)) from error
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):  # no connection
                raise OSError(str(cause)) from error
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
        except OSError:
            raise
        except (
            Exception
        ) as error:  # not installed, no such protocol, no credentials: each has its own exception
            raise OSError(f"{type(error).__name__}: {error}") from error
