"""Parquet: each row of the table is a row, each column a key, nulls are absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.dataset.containers.batches import Batch, Batches, Broken, Values
from services.dataset.reading.findings import Reason, UnreadableFile
from services.dataset.reading.limits import Limits

ROWS_PER_BATCH = 64
"""Few: one dictionary-encoded text of some MB may be repeated in every row of a batch."""
# All that pyarrow raises on damaged files.
_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, NotImplementedError, OverflowError)


def read(path: Path, limits: Limits) -> Batches:
    """The rows of the file. Memory holds the pages of a row group that are being read, not the row group; footers
    that claim absurd sizes are refused before anything is read, dishonest ones by what comes out."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, memory_map=False) as file:
            _check_footer(file, limits)
            yield from _batches(file, path.stat().st_size, limits)
    except UnicodeDecodeError:
        raise UnreadableFile("DAMAGED_FILE", "a column's name is not valid UTF-8") from None
    except MemoryError:
        message = "reading it takes more memory than a file may: write it with smaller row groups and texts"
        raise UnreadableFile("FILE_TOO_COMPLEX", message) from None
    except _ERRORS as error:
        raise UnreadableFile("DAMAGED_FILE", f"the Parquet file cannot be read: {str(error)[:300]}") from None


def _check_footer(file: pq.ParquetFile, limits: Limits) -> None:
    footer = file.metadata
    if footer.num_columns > limits.columns:
        raise UnreadableFile("TOO_MANY_COLUMNS", f"has {footer.num_columns} columns; at most {limits.columns}")
    if footer.num_rows > limits.rows:
        raise UnreadableFile("TOO_MANY_ROWS", f"claims {footer.num_rows} rows; at most {limits.rows}")
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        raise UnreadableFile("COLUMN_TWICE", "two columns have the same name")
    for index in range(footer.num_columns):
        if file.schema.column(index).path.count(".") >= limits.column_depth * 2:
            raise UnreadableFile("TOO_DEEP", f"column {names[0]!r} is nested deeper than {limits.column_depth} levels")
    for index in range(footer.num_row_groups):
        claimed = footer.row_group(index).total_byte_size
        if not 0 <= claimed <= limits.row_group_bytes:
            message = f"row group {index} claims {claimed} bytes; at most {limits.row_group_bytes}"
            raise UnreadableFile("ROW_GROUP_TOO_LARGE", f"{message}: write the file with smaller row groups")


def _batches(file: pq.ParquetFile, size_bytes: int, limits: Limits) -> Iterator[Batch]:
    rows = bytes_out = 0
    for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, use_threads=False):
        rows += batch.num_rows
        bytes_out += sum(map(_expanded_bytes, batch.columns))
        if rows > limits.rows:
            raise UnreadableFile("TOO_MANY_ROWS", f"has more than {limits.rows} rows")
        _check_size(bytes_out, size_bytes, limits)
        yield from _rows(_without_nanoseconds(batch))


def _check_size(bytes_out: int, size_bytes: int, limits: Limits) -> None:
    if bytes_out > limits.decompressed_bytes:
        raise UnreadableFile("FILE_TOO_LARGE", f"decompresses to more than {limits.decompressed_bytes} bytes")
    if bytes_out > limits.ratio_grace_bytes and bytes_out > limits.ratio * size_bytes:
        raise UnreadableFile("COMPRESSION_RATIO", f"decompresses to over {limits.ratio} times its size: a bomb")


def _expanded_bytes(array: pa.Array[Any]) -> int:
    """What the values take when each is written out: a dictionary holds one of many equal values once."""
    return max(array.nbytes, sum(map(_expanded_bytes, _children(array))), _indexed_bytes(array))


def _children(array: pa.Array[Any]) -> list[pa.Array[Any]]:
    kind = array.type
    if pa.types.is_struct(kind):
        return array.flatten()
    if pa.types.is_map(kind):
        return [array.keys, array.items]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [array.flatten()]
    return [array.storage] if isinstance(array, pa.ExtensionArray) else []


def _indexed_bytes(array: pa.Array[Any]) -> int:
    if not pa.types.is_dictionary(array.type) or pa.types.is_primitive(array.type.value_type):
        return 0
    sizes = pc.call_function("binary_length", [array.dictionary])
    return sizes.cast(pa.int64()).take(array.indices).sum().as_py() or 0


def _without_nanoseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times in microseconds: Python has none finer, and pyarrow turns them into pandas objects where pandas is."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            column = batch.column(index).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(index, field.name, column)
    return batch


def _rows(batch: pa.RecordBatch) -> Iterator[Batch]:
    try:
        yield Values(_present(batch.to_pylist()), None)
        return
    except UnicodeDecodeError:
        pass
    for index in range(batch.num_rows):
        try:
            yield Values(_present(batch.slice(index, 1).to_pylist()), None)
        except UnicodeDecodeError:
            yield Broken(None, Reason.INVALID_UTF8, "a text is not valid UTF-8; write the file from UTF-8 text")


def _present(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
