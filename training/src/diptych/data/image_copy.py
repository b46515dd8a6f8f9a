"""Copies the images of a Parquet column into one plain file, where each can be read alone."""

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

IMAGES_AT_ONCE = 16  # in memory, each of at most 20 MiB


class ImageCopy:
    """The images of one column, by row. Takes 8 bytes of memory a row."""

    def __init__(self, file: Path, ends: NDArray[np.int64]):
        self._file = file
        self._ends = ends

    def cell(self, row: int) -> Cell | None:
        """The place of a row's image, rows counted from 0; None if the row has none."""
        start, end = (int(self._ends[row - 1]) if row else 0), int(self._ends[row])
        return Cell(self._file, start, end - start) if end > start else None


def copy_images(parquet: pq.ParquetFile, column: str, table: Location) -> ImageCopy:
    """The copy in the cache, made if there is none of this version of the table.

    It takes as much disk as the images. The cache does not remove it while this process lives.
    """
    key = hashlib.sha256(f"{table}\n{table.version()}\n{column}".encode()).hexdigest()[:32]
    images, ends = (cache_directory("pictures") / f"{key}.{kind}" for kind in ("bin", "npy"))
    if (copy := _open_copy(images, ends, parquet.metadata.num_rows)) is not None:
        return copy
    try:
        images.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_when_whole(images) as file:
            lengths = _write_cells(parquet, column, file, f"Copying images of {table.name}")
        with _renamed_when_whole(ends) as file:
            np.save(file, np.cumsum(lengths, dtype=np.int64))
    except OSError as error:
        if error.errno is None:  # from pyarrow: the table is damaged, not the disk
            raise
        raise UserError(
            f"{table}: cannot copy its images to {images.parent}: {error.strerror}. They need "
            f"as much room there as in the table; {CACHE_ENV} names another folder."
        ) from None
    hold(images)
    keep_within_limit()
    return ImageCopy(images, np.load(ends))


def _open_copy(images: Path, ends_file: Path, num_rows: int) -> ImageCopy | None:
    """None if there is none; a damaged copy is removed."""
    if not (images.is_file() and ends_file.is_file()):
        return None
    hold(images)
    try:
        ends = np.load(ends_file, allow_pickle=False)
        num_bytes = int(ends[-1]) if num_rows else 0
    except (OSError, ValueError, IndexError, EOFError) as error:
        forget_damaged(ends_file, error)
        return None
    status = images.stat()
    if ends.shape != (num_rows,) or status.st_size != num_bytes:
        forget_damaged(images, f"{status.st_size:,} bytes; expected: {num_bytes:,}")
        return None
    if status.st_mtime_ns > ends_file.stat().st_mtime_ns:
        forget_damaged(images, "it was changed after it was written")
        return None
    use(images)
    use(ends_file)
    return ImageCopy(images, ends)


def _write_cells(parquet: pq.ParquetFile, column: str, file: BinaryIO, title: str) -> NDArray[np.int64]:
    """Append all cells to the file. Returns (N,) int64, the number of bytes of each cell."""
    lengths = np.zeros(parquet.metadata.num_rows, np.int64)
    row = 0
    with progress_bar(title, len(lengths)) as advance:
        for batch in parquet.iter_batches(IMAGES_AT_ONCE, columns=[column]):
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
    """A file that gets its name when it is complete, also if another process writes the same one."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
