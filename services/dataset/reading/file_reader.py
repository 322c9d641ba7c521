"""Opens an uploaded file: what it is, by its name and by its first bytes, which must agree."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.dataset.containers import csv_table, json_array, json_lines
from services.dataset.containers.batches import BLOCK_BYTES, Batches
from services.dataset.containers.compression import DecompressedStream, detect
from services.dataset.reading.file_names import by_name
from services.dataset.reading.findings import UnreadableFile
from services.dataset.reading.limits import MIB, Limits

SNIFFED_BYTES = MIB
_PARQUET_MAGIC = b"PAR1"
_BLANK = b" \t\r\n"
_ICONV = "iconv -f {} -t UTF-8 OLD > NEW"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or Excel sheet",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF document",
}


@dataclass(frozen=True)
class OpenedFile:
    """`container` is jsonl, json, csv or parquet; `compression` none, gzip or zstd."""

    container: str
    compression: str
    batches: Batches
    stream: DecompressedStream


@contextmanager
def open_rows(
    path: Path,
    file_name: str,
    limits: Limits,
    block_bytes: int = BLOCK_BYTES,
    names: Mapping[str, str] | None = None,
) -> Iterator[OpenedFile]:
    """The rows of the file at `path`, which its owner calls `file_name`. Raises UnreadableFile, also while reading.

    `names` tells as what its columns will be read, where that is something else than they are called.
    """
    container, compression = by_name(file_name)
    _check_compression(path, compression)
    stream = DecompressedStream(path, compression, limits)
    try:
        container = _by_content(container, stream)
        with _batches(container, path, stream, limits, block_bytes, names or {}) as batches:
            yield OpenedFile(container, compression, batches, stream)
    finally:
        stream.close()


def _check_compression(path: Path, compression: str) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise UnreadableFile("EMPTY_FILE", "the file is empty")
    found = detect(head)
    if found != compression:
        message = f"the name says compression {compression}, the content is {found}; rename the file"
        raise UnreadableFile("NAME_AND_CONTENT_DIFFER", message)


def _by_content(container: str, stream: DecompressedStream) -> str:
    """The container, after a look at the first bytes. A `.json` file may hold JSON lines: many do."""
    head = stream.peek(8)
    if not head:
        raise UnreadableFile("EMPTY_FILE", "the file is empty")
    foreign = next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), None)
    if foreign:
        raise _differ(container, foreign)
    if container != "parquet" and (found := _utf16(head)):
        message = f"the file is {found} text, not UTF-8; save it as UTF-8, or: {_ICONV.format(found)}"
        raise UnreadableFile("NOT_UTF8", message)
    if (container == "parquet") != head.startswith(_PARQUET_MAGIC):
        raise _differ(container, "something else" if container == "parquet" else "a Parquet file")
    if container == "parquet":
        return container
    stream.skip_byte_order_mark()
    looked_at = stream.peek(SNIFFED_BYTES)
    start = looked_at.lstrip(_BLANK)
    if not start and len(looked_at) < SNIFFED_BYTES:
        raise UnreadableFile("EMPTY_FILE", "the file holds nothing but white space")
    if container in ("jsonl", "csv") and start.startswith(b"["):
        raise _differ(container, "a JSON array")
    if container == "csv" and start.startswith(b"{"):
        raise _differ(container, "JSON")
    if container == "json" and start.startswith(b"{") and _first_line_is_row(start):
        return "jsonl"
    if container == "json" and start and start[:1] not in (b"[", b"{"):
        raise _differ(container, "something else")
    return container


def _utf16(head: bytes) -> str:
    """UTF-16 by its mark, or by the empty half of each of the first characters, as its name is for iconv."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    low, high = head[:4:2], head[1:4:2]
    if len(head) >= 4 and not any(high) and all(low):
        return "UTF-16LE"
    return "UTF-16BE" if len(head) >= 4 and not any(low) and all(high) else ""


def _differ(container: str, found: str) -> UnreadableFile:
    message = f"the name says {container}, the content is {found}; rename the file"
    return UnreadableFile("NAME_AND_CONTENT_DIFFER", message)


def _first_line_is_row(start: bytes) -> bool:
    """Whether the first line is an object by itself, and not one that wraps the array of rows."""
    line = start.split(b"\n", 1)[0]
    try:
        value = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return not any(isinstance(value.get(key), list) for key in json_array.ROW_KEYS)


@contextmanager
def _batches(
    container: str,
    path: Path,
    stream: DecompressedStream,
    limits: Limits,
    block_bytes: int,
    names: Mapping[str, str],
) -> Iterator[Batches]:
    if container == "jsonl":
        yield json_lines.read(stream, limits, block_bytes)
    elif container == "json":
        yield json_array.read(stream, limits, block_bytes)
    elif container == "csv":
        yield csv_table.read(stream, limits, block_bytes, names)
    else:
        from services.dataset.containers import parquet_table  # here: importing pyarrow takes its time

        with _decompressed(path, stream) as plain:
            yield parquet_table.read(plain, limits)


@contextmanager
def _decompressed(path: Path, stream: DecompressedStream) -> Iterator[Path]:
    """A file that can be read from anywhere."""
    if not stream.compressed:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="parquet-") as scratch:
        while piece := stream.read(MIB):
            scratch.write(piece)
        scratch.flush()
        yield Path(scratch.name)
