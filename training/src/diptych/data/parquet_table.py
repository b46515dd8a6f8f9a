"""The rows of a Parquet file as they are in it.

A cell of Parquet cannot be read alone, because a group of rows is compressed together, often the whole
file. So a column of images is copied once to a plain file (image_copy.py), and an item holds its place
there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diptych.data.image_copy import ImageCopy, copy_images
from diptych.data.items import BadRow, Item
from diptych.data.table_file import HEAD_BYTES, PARQUET_MAGIC, refuse_other_kinds
from diptych.location import Location
from diptych_serving.errors import UserError

REQUIRED = ("description", "category")
EXPECTED_TEXT = "strings"
EXPECTED_IMAGE = "bytes, or the struct of bytes and path that Hugging Face datasets writes"
ROWS_AT_ONCE = 16_384  # of short strings: a few MB
# Otherwise pyarrow reads the column of a whole group of rows at once, often the whole file.
ONE_PAGE_AT_A_TIME = {"pre_buffer": False, "buffer_size": 2**20}


def read_parquet(table: Location, *, needs_category: bool = True) -> Iterator[Item | BadRow]:
    """Image paths are resolved and images copied, nothing else is checked. A few rows at a time are in
    memory.

    needs_category  whether there must be a column of that name; without it, every category is empty
    """
    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(table.open())
            refuse_other_kinds(source.read(HEAD_BYTES), table, expected=PARQUET_MAGIC)
            source.seek(0)
            parquet = stack.enter_context(pq.ParquetFile(source, **ONE_PAGE_AT_A_TIME))
            schema = parquet.schema_arrow
            _check_columns(schema, table, needs_category)
            images = paths = None
            if "image_path" in schema.names:
                paths = "image_path"
            if "image" in schema.names:
                kind = schema.field("image").type
                is_struct = pa.types.is_struct(kind)
                images = copy_images(parquet, "image.bytes" if is_struct else "image", table)
                if is_struct and kind.get_field_index("path") >= 0:
                    paths = "image.path"
            yield from _rows(parquet, table, images, paths)
    except pa.ArrowException as error:
        raise UserError(f"{table}: cannot read it as Parquet: {error}") from None


def _rows(
    parquet: pq.ParquetFile, table: Location, images: ImageCopy | None, paths: str | None
) -> Iterator[Item | BadRow]:
    number = 0
    present = [name for name in REQUIRED if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=[*present, *([paths] if paths else [])]):
        columns = [_column(batch, name) if name in present else [b""] * len(batch) for name in REQUIRED]
        columns.append(_column(batch, paths) if paths else [b""] * len(batch))
        for cells in zip(*columns, strict=True):
            number += 1
            try:
                text, category, path = (cell.decode("utf-8").strip() for cell in cells)
            except UnicodeDecodeError as error:
                detail = f"byte 0x{error.object[error.start]:02x}"
                yield BadRow(line=number, reason="invalid UTF-8", detail=detail)
                continue
            image = images.cell(number - 1) if images else None
            yield Item(
                table=table,
                line=number,
                image=image or (table.beside(path) if path else None),
                text=text,
                category=sys.intern(category),  # millions of rows share a few category names
            )


def _column(batch: pa.RecordBatch, name: str) -> list[bytes]:
    """The cells of strings as bytes, so that invalid UTF-8 spoils only its row; null as empty."""
    column, _, field = name.partition(".")
    cells = batch.column(column)
    if field:
        cells = pc.struct_field(cells, field)
    values: list[bytes | None] = cells.cast(pa.large_binary()).to_pylist()
    return [value or b"" for value in values]


def _check_columns(schema: pa.Schema, table: Location, needs_category: bool) -> None:
    wanted = [name for name in REQUIRED if needs_category or name != "category"]
    missing = [name for name in wanted if name not in schema.names]
    if not {"image", "image_path"} & set(schema.names):
        missing.insert(0, "image_path or image")
    if missing:
        raise UserError(
            f"{table}: no column {', '.join(missing)}. Found: {', '.join(schema.names) or 'nothing'}; "
            f"required: image_path or image, {', '.join(wanted)}."
        )
    for name in (*REQUIRED, "image_path", "image"):
        if schema.names.count(name) > 1:
            raise UserError(
                f"{table}: {schema.names.count(name)} columns are named {name}. Rename all but one."
            )
    for field in schema:
        if field.name in (*REQUIRED, "image_path") and not _holds_text(field.type):
            expected = EXPECTED_TEXT
        elif field.name == "image" and not _holds_images(field.type):
            expected = EXPECTED_IMAGE
        else:
            continue
        raise UserError(f"{table}: column {field.name} holds {field.type}; expected: {expected}.")


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())
