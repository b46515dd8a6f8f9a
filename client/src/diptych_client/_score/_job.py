"""Scores one table: classifies its rows, writes a checkpoint every N rows, shows progress."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diptych_client._answer import Answer
from diptych_client._errors import DiptychError, InvalidInput, ServerFault
from diptych_client._score._checkpoints import Checkpoints, only_job
from diptych_client._score._table import Row, Table, open_table, rows_of

if TYPE_CHECKING:
    from diptych_client._client import Client

# Errors of one file. All others (too many open files, a failing disk) are the machine's.
ERRORS_OF_ONE_FILE = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
)

DEFAULT_CONCURRENCY = 32
DEFAULT_ROWS_PER_CHECKPOINT = 1000

Scored = tuple[Row, Answer | DiptychError]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The numbers of scored and failed rows, and their files. Together they are all rows."""

    num_scored: int
    num_failed: int
    out: str
    errors: str


def score_table(
    client: Client,
    table_path: Path,
    out: Path,
    *,
    concurrency: int = DEFAULT_CONCURRENCY,
    rows_per_checkpoint: int = DEFAULT_ROWS_PER_CHECKPOINT,
    skip_faults: bool = False,
    on_progress: Callable[[int, int], None] = lambda num_done, num_rows: None,
) -> Summary:
    """Classify every row of a CSV or Parquet table; write Parquet, and a CSV of the rows that cannot be.

    The job stops at every failure that is not a row's own: no server, an expired token, a failing disk. The
    same call resumes it, also after a kill: no row is lost or repeated.

    table_path   columns image_path (absolute, or relative to the table) and description; in Parquet also
                 image, with the images themselves. Others are copied to the output.
    out          a .parquet file: the row's number, the table's columns, label, score, probabilities by
                 label, model_version. Bad rows go beside it, to a CSV of row, field and reason.
    skip_faults  count a row that causes a server error as bad, if the server still answers other items;
                 default: stop
    on_progress  called with the number of rows done and of all rows
    raises       InvalidInput for a table or an output that cannot be used; any other DiptychError or OSError
                 that stopped the job. What was answered until then is kept.
    """
    if out.suffix != ".parquet":
        raise InvalidInput.refusing("--out", str(out), "a file that ends in .parquet")
    if rows_per_checkpoint < 1:
        raise InvalidInput.refusing("--checkpoint-rows", str(rows_per_checkpoint), "1 or more")

    def can_skip(error: DiptychError) -> bool:
        return skip_faults and isinstance(error, ServerFault) and client.health(deep=True).is_healthy

    table = open_table(table_path)
    labels = client.labels()
    schema = _output_schema(table, labels)
    with only_job(out):
        checkpoints = Checkpoints(out, schema, _describe_job(table_path, schema))
        on_progress(checkpoints.num_done, table.num_rows)
        rows = rows_of(table, table_path, after=checkpoints.num_done)
        with contextlib.closing(_ask(client, rows, concurrency)) as scored:
            while checkpoints.num_done < table.num_rows:
                some = itertools.islice(scored, rows_per_checkpoint)
                num_taken = _take(some, checkpoints, labels, table.num_rows, can_skip, on_progress)
                if num_taken == 0:
                    found = f"{table_path} with {checkpoints.num_done:,} of {table.num_rows:,} rows left"
                    accepted = "a table that does not change while it is scored"
                    raise InvalidInput.refusing("table", found, accepted)
        num_scored, num_failed = checkpoints.assemble()
    return Summary(num_scored, num_failed, str(checkpoints.out), str(checkpoints.errors))


def _take(
    scored: Iterable[Scored],
    checkpoints: Checkpoints,
    labels: tuple[str, ...],
    num_rows: int,
    can_skip: Callable[[DiptychError], bool],
    on_progress: Callable[[int, int], None],
) -> int:
    """Make one checkpoint of these rows, or of those before what stops the job, which is raised then. Returns
    how many they were."""
    stopped_by: Exception | None = None
    scores: list[dict[str, Any]] = []
    errors: list[tuple[object, ...]] = []
    num_done = checkpoints.num_done
    for row, outcome in scored:
        if isinstance(outcome, Answer):
            if outcome.probabilities.keys() != set(labels):
                stopped_by = _other_labels(outcome, labels)
                break
            scores.append(_score_of(row, outcome))
        else:
            stopped_by = _not_about(row, outcome, can_skip)
            if stopped_by is not None:
                break
            errors.append((row.number, getattr(outcome, "field", None) or "", outcome.message))
        num_done = row.number
        on_progress(num_done, num_rows)
    if scores or errors:
        checkpoints.add(num_done, scores, errors)
    if stopped_by is not None:
        raise stopped_by
    return len(scores) + len(errors)


def _not_about(row: Row, error: DiptychError, can_skip: Callable[[DiptychError], bool]) -> Exception | None:
    """The error that stops the job, because other rows would fail too; None if it is only this row's."""
    if error is row.error or can_skip(error):
        return None
    if not isinstance(error, InvalidInput) or not error.is_about_item:
        return error
    reason = error.__cause__  # why its file could not be read
    if isinstance(reason, OSError) and reason.errno not in ERRORS_OF_ONE_FILE:
        return reason
    return None


def _other_labels(answer: Answer, labels: tuple[str, ...]) -> InvalidInput:
    """After a release. A table needs the same labels in all rows."""
    found = f"answers of version {answer.model_version} with the labels {', '.join(answer.probabilities)}"
    return InvalidInput.refusing("--out", found, f"those that the job began with: {', '.join(labels)}")


def _ask(client: Client, rows: Iterator[Row], concurrency: int) -> Generator[Scored, None, None]:
    """Each row with its outcome."""
    rows, asked = itertools.tee(rows)
    with contextlib.closing(client.classify_many(asked, concurrency=concurrency)) as outcomes:
        for row, outcome in zip(rows, outcomes, strict=False):
            # A row that could not be read has neither image nor text, so the server was not asked about it.
            result = row.error or outcome.answer or outcome.error
            assert result is not None
            yield row, result


def _output_schema(table: Table, labels: tuple[str, ...]) -> pa.Schema:
    probabilities = pa.struct([(label, pa.float32()) for label in labels])
    answers = [("label", pa.string()), ("score", pa.float32()), ("probabilities", probabilities)]
    ours = pa.schema([*answers, ("model_version", pa.string())])
    taken = {"row", *ours.names}.intersection(table.kept.names)
    if taken:
        accepted = f"other names: {', '.join(['row', *ours.names])} are columns of the output"
        raise InvalidInput.refusing("table", f"columns {', '.join(sorted(taken))}", accepted)
    return pa.schema([("row", pa.int64()), *table.kept, *ours])


def _score_of(row: Row, answer: Answer) -> dict[str, Any]:
    return {
        "row": row.number,
        **row.kept,
        "label": answer.label,
        "score": answer.score,
        "probabilities": answer.probabilities,
        "model_version": answer.model_version,
    }


def _describe_job(table_path: Path, schema: pa.Schema) -> dict[str, Any]:
    stat = table_path.stat()
    return {
        "table": str(table_path.resolve()),
        "size_bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "columns": {field.name: str(field.type) for field in schema},
    }


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A function of the number of finished rows and of all rows, which writes to standard error."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda num_done, num_rows: progress.update(task, completed=num_done, total=num_rows)
