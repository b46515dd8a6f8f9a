"""Copies the pictures of a Parquet column into one plain file, where each can be read alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diptych.data.items import Cell
from diptych.location import Location
from diptych_serving.cache import CACHE_ENV, cache_directory, forget_damaged, hold, keep_within_limit, use
from diptych_serving.errors import UserError
from diptych_serving.progress import progress_bar

PICTURES_AT_ONCE = 16  # what is in memory meanwhile; a picture has at most 20 MiB


class PictureCopy:
    """The pictures of one column, by row. Holds 8 bytes a row."""

    def __init__(self, file: Path, ends: NDArray[np.int64]):
        self._file = file
        self._ends = ends

    def cell(self, row: int) -> Cell | None:
        """Where the picture of a row lies, counted from 0; None where the row has none."""
        start, end = (int(self._ends[row - 1]) if row else 0), int(self._ends[row])
        return Cell(self._file, start, end - start) if end > start else None


def copy_pictures(parquet: pq.ParquetFile, column: str, table: Location) -> PictureCopy:
    """The copy in the cache, made where there is none yet of this version of the table.

    Takes as much disk as the pictures do. This process keeps it from being removed from the cache.
    """
    key = hashlib.sha256(f"{table}\n{table.version()}\n{column}".encode()).hexdigest()[:32]
    pictures, ends = (cache_directory("pictures") / f"{key}.{kind}" for kind in ("bin", "npy"))
    if (copy := _open_copy(pictures, ends, parquet.metadata.num_rows)) is not None:
        return copy
    try:
        pictures.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_when_whole(pictures) as file:
            lengths = _write_cells(parquet, column, file, f"Copying pictures of {table.name}")
        with _renamed_when_whole(ends) as file:
            np.save(file, np.cumsum(lengths, dtype=np.int64))
    except OSError as error:
        if error.errno is None:  # from pyarrow: the table is damaged, the disk is not at fault
            raise
        raise UserError(
            f"{table}: cannot copy its pictures to {pictures.parent}: {error.strerror}. They need "
            f"as much room there as in the table; {CACHE_ENV} names another folder."
        ) from None
    hold(pictures)
    keep_within_limit()
    return PictureCopy(pictures, np.load(ends))


def _open_copy(pictures: Path, ends_file: Path, num_rows: int) -> PictureCopy | None:
    """None where there is none; a damaged one is removed."""
    if not (pictures.is_file() and ends_file.is_file()):
        return None
    hold(pictures)
    try:
        ends = np.load(ends_file, allow_pickle=False)
        num_bytes = int(ends[-1]) if num_rows else 0
    except (OSError, ValueError, IndexError, EOFError) as error:
        forget_damaged(ends_file, error)
        return None
    status = pictures.stat()
    if ends.shape != (num_rows,) or status.st_size != num_bytes:
        forget_damaged(pictures, f"{status.st_size:,} bytes; expected: {num_bytes:,}")
        return None
    if status.st_mtime_ns > ends_file.stat().st_mtime_ns:
        forget_damaged(pictures, "it was changed after it was written")
        return None
    use(pictures)
    use(ends_file)
    return PictureCopy(pictures, ends)


def _write_cells(parquet: pq.ParquetFile, column: str, file: BinaryIO, title: str) -> NDArray[np.int64]:
    """Append all cells to the file. Returns (N,) int64, the bytes of each row's."""
    lengths = np.zeros(parquet.metadata.num_rows, np.int64)
    row = 0
    with progress_bar(title, len(lengths)) as advance:
        for batch in parquet.iter_batches(PICTURES_AT_ONCE, columns=[column]):
            cells = batch.column(0)
            if pa.types.is_struct(cells.type):
                cells = pc.struct_field(cells, "bytes")
            for cell in cells.cast(pa.large_binary()):
                if cell.is_valid:
                    lengths[row] = file.write(cell.as_buffer())
                row += 1
            advance(len(cells))
    return lengths


@contextlib.contextmanager
def _renamed_when_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name last: what has the name is whole, whoever else writes it too."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
