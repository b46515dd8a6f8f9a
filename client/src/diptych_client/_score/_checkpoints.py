"""The checkpoints of a job, in a folder beside its output, from which a killed job resumes.

A checkpoint is two files, named by the number of finished rows: the rows' errors, then their scores. Each is
written by a rename, the scores last, so a checkpoint with scores is complete. Rows after the last complete
checkpoint are sent again.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from diptych_client._errors import InvalidInput

ERROR_COLUMNS = ("row", "field", "reason")
JOB_FILE = "job.json"


@contextlib.contextmanager
def only_job(out: Path) -> Iterator[None]:
    """Lock the output while the block runs; a killed job releases it.

    raises  InvalidInput if another job holds it
    """
    lock = filelock.FileLock(out.with_name(f"{out.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        found = f"{out}, which another job is writing"
        raise InvalidInput.refusing("--out", found, "another file, or none but that job") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


class Checkpoints:
    """The folder OUT.parts and the two final files, OUT and its errors."""

    def __init__(self, out: Path, schema: pa.Schema, job: Mapping[str, Any]) -> None:
        """Make the folder, or continue with an existing one.

        job     what the rows and their answers depend on, as JSON; other checkpoints are refused
        raises  InvalidInput if the output exists, or the checkpoints belong to another job
        """
        self.out, self.errors = out, out.with_suffix(".errors.csv")
        self._schema = schema
        self._folder = out.with_name(f"{out.name}.parts")
        self._finished = out.with_name(f"{out.name}.finished")  # the folder, once it is not needed
        shutil.rmtree(self._finished, ignore_errors=True)
        if not self._folder.exists():
            if out.exists():
                raise InvalidInput.refusing("--out", f"{out}, which exists", "a new file")
            self._folder.mkdir(parents=True)
            _sync(self._folder.parent)
        self._require_same(job)

    @property
    def num_done(self) -> int:
        """The number of rows, from the first on, that are answered and on disk."""
        return max(self._ends(), default=0)

    def add(self, end: int, scores: Sequence[Mapping[str, Any]], errors: Sequence[Sequence[object]]) -> None:
        """Keep the answers to all rows from the last checkpoint to row `end`."""
        with _written(self._errors_of(end)) as path, path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(errors)
        with _written(self._scores_of(end)) as path:
            pq.write_table(pa.Table.from_pylist(list(scores), schema=self._schema), path)

    def assemble(self) -> tuple[int, int]:
        """Join all checkpoints to the output, the scores last, and remove them. Returns (scored, failed)."""
        ends = sorted(self._ends())
        num_failed = 0
        with _written(self.errors) as path, path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(ERROR_COLUMNS)
            for end in ends:
                with self._errors_of(end).open(encoding="utf-8", newline="") as part:
                    for row in csv.reader(part):
                        writer.writerow(row)
                        num_failed += 1
        num_scored = 0
        with _written(self.out) as path, pq.ParquetWriter(path, self._schema) as parquet:
            for end in ends:
                table = pq.read_table(self._scores_of(end), schema=self._schema)
                parquet.write_table(table)
                num_scored += table.num_rows
        # In one step, because a half-removed folder would look like an unfinished job.
        self._folder.rename(self._finished)
        _sync(self._folder.parent)
        shutil.rmtree(self._finished)
        return num_scored, num_failed

    def _require_same(self, job: Mapping[str, Any]) -> None:
        file = self._folder / JOB_FILE
        if not file.exists():
            with _written(file) as path:
                path.write_text(json.dumps(job, indent=2), "utf-8")
        began_as = json.loads(file.read_text("utf-8"))
        changed = [key for key in job if began_as.get(key) != job[key]]
        if changed:
            found = f"{self._folder} of another job ({', '.join(changed)} changed)"
            raise InvalidInput.refusing("--out", found, "the same table, or another --out, or no such folder")

    def _ends(self) -> list[int]:
        return [int(path.stem) for path in self._folder.glob("*.parquet")]

    def _scores_of(self, end: int) -> Path:
        return self._folder / f"{end:012}.parquet"

    def _errors_of(self, end: int) -> Path:
        return self._folder / f"{end:012}.errors.csv"


@contextlib.contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` when it is complete and on the disk."""
    beside = path.with_name(f"{path.name}.tmp")
    yield beside
    _sync(beside)
    os.replace(beside, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a loss of power."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders, and keeps their names by itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
