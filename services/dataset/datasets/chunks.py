"""A version's content: canonical rows in ordered chunks, each named by the SHA-256 of its bytes.

A chunk is its rows as JSON lines, each with its newline, so the chunks one after another are the file to download.
Chunks are cut by the rows alone: the same rows give the same chunks however they arrived.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from services.dataset.formats import formats

TARGET_BYTES = 4 << 20
Sink: TypeAlias = Callable[[memoryview], None]
"""Takes a chunk as it fills, in order. The bytes are good until it returns."""


@dataclass(frozen=True)
class Chunk:
    """`first_row` and `first_byte` count from 0 within the version."""

    sha256: str
    first_row: int
    rows: int
    first_byte: int
    size_bytes: int


class ChunkWriter:
    """Cuts rows into chunks and hands each to the sink as it fills. Holds one chunk in memory."""

    def __init__(self, sink: Sink, target_bytes: int = TARGET_BYTES) -> None:
        self._sink = sink
        self._target = target_bytes
        # Allocated once: memory that is given back and taken again 4 MiB at a time costs more than the copying.
        self._buffer = bytearray(target_bytes)
        self._size = 0
        self.rows = 0
        self.size_bytes = 0

    def add(self, rows: Sequence[bytes]) -> None:
        """`rows` encoded, without newline. A chunk is closed before the row that would take it past the target."""
        start, end = 0, len(rows)
        while start < end:
            stop = self._fitting(rows, start)
            if stop > start:
                self._append(rows[start:stop])
            if stop < end:
                self._close()
            start = stop

    def finish(self) -> None:
        if self._size:
            self._close()

    def _fitting(self, rows: Sequence[bytes], start: int) -> int:
        """Up to which row they fit into the chunk. An empty chunk takes its first row whatever its size."""
        room = self._target - self._size
        if start == 0 and sum(map(len, rows)) + len(rows) <= room:
            return len(rows)
        for index in range(start, len(rows)):
            room -= len(rows[index]) + 1
            if room < 0 and (self._size or index > start):
                return index
        return len(rows)

    def _append(self, rows: Sequence[bytes]) -> None:
        content = b"\n".join(rows) + b"\n"
        self._buffer[self._size : self._size + len(content)] = content
        self._size += len(content)
        self.size_bytes += len(content)
        self.rows += len(rows)

    def _close(self) -> None:
        with memoryview(self._buffer)[: self._size] as content:
            self._sink(content)
        self._size = 0


class Content:
    """The chunks of a version as they fill, named and counted by whoever stores them."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.row_count = 0
        self.size_bytes = 0

    def add(self, sha256: str, content: bytes) -> None:
        rows = content.count(b"\n")
        self.chunks.append(Chunk(sha256, self.row_count, rows, self.size_bytes, len(content)))
        self.row_count += rows
        self.size_bytes += len(content)


def version_sha256(format_name: str, chunks: Iterable[Chunk]) -> str:
    """The content's name: SHA-256 over the format and the ordered hashes, one to a line."""
    lines = [format_name, *(chunk.sha256 for chunk in chunks)]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def raw_rows(content: bytes) -> list[bytes]:
    """The rows of a chunk as canonical JSON, without newlines."""
    return content.removesuffix(b"\n").split(b"\n") if content else []


def rows(content: bytes, format_name: str) -> list[Any]:
    """The rows of a chunk as canonical structs (`MessagesRow`, …)."""
    return msgspec.json.Decoder(formats.get(format_name).row).decode_lines(content)
