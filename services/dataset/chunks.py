"""A version's content: canonical rows in ordered chunks, each named by the SHA-256 of its bytes.

A chunk is its rows as JSON lines, each with its newline, so the chunks one after another are the file to download.
Chunks are cut by the rows alone: the same rows give the same chunks however they arrived.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from services.dataset.formats import formats
from services.mesh.errors import OutOfRange

TARGET_BYTES = 4 << 20
Sink: TypeAlias = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Chunk:
    """`first_row` and `first_byte` count from 0 within the version."""

    sha256: str
    first_row: int
    rows: int
    first_byte: int
    size_bytes: int


class ChunkWriter:
    """Cuts rows into chunks and hands each to `sink(sha256, content)` as it fills. Holds one chunk in memory."""

    def __init__(self, sink: Sink, target_bytes: int = TARGET_BYTES) -> None:
        self._sink = sink
        self._target = target_bytes
        # Allocated once: memory that is given back and taken again 4 MiB at a time costs more than the copying.
        self._buffer = bytearray(target_bytes)
        self._size = 0
        self._buffered_rows = 0
        self._digest = hashlib.sha256()
        self.chunks: list[Chunk] = []
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

    def finish(self) -> tuple[Chunk, ...]:
        if self._buffered_rows:
            self._close()
        return tuple(self.chunks)

    def _fitting(self, rows: Sequence[bytes], start: int) -> int:
        """Up to which row they fit into the chunk. An empty chunk takes its first row whatever its size."""
        room = self._target - self._size
        if start == 0 and sum(map(len, rows)) + len(rows) <= room:
            return len(rows)
        for index in range(start, len(rows)):
            room -= len(rows[index]) + 1
            if room < 0 and (self._buffered_rows or index > start):
                return index
        return len(rows)

    def _append(self, rows: Sequence[bytes]) -> None:
        # Hashed here and not when the chunk is full: these bytes are still in the processor's cache.
        content = b"\n".join(rows) + b"\n"
        self._buffer[self._size : self._size + len(content)] = content
        self._size += len(content)
        self._digest.update(content)
        self._buffered_rows += len(rows)

    def _close(self) -> None:
        content, name = bytes(memoryview(self._buffer)[: self._size]), self._digest.hexdigest()
        self._sink(name, content)
        self.chunks.append(Chunk(name, self.rows, self._buffered_rows, self.size_bytes, len(content)))
        self.rows += self._buffered_rows
        self.size_bytes += len(content)
        self._size, self._buffered_rows, self._digest = 0, 0, hashlib.sha256()


def version_sha256(format_name: str, chunks: Iterable[Chunk]) -> str:
    """The content's name: SHA-256 over the format and the ordered hashes, one to a line."""
    lines = [format_name, *(chunk.sha256 for chunk in chunks)]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def find_row(chunks: Sequence[Chunk], row: int) -> tuple[int, int]:
    """(index of the chunk that holds row number `row` of the version, counted from 0; its place in that chunk)."""
    return _find([chunk.first_row for chunk in chunks], row, chunks[-1].first_row + chunks[-1].rows if chunks else 0)


def find_byte(chunks: Sequence[Chunk], offset: int) -> tuple[int, int]:
    """(index of the chunk that holds byte `offset` of the version, counted from 0; its place in that chunk)."""
    end = chunks[-1].first_byte + chunks[-1].size_bytes if chunks else 0
    return _find([chunk.first_byte for chunk in chunks], offset, end)


def _find(starts: list[int], wanted: int, end: int) -> tuple[int, int]:
    if not 0 <= wanted < end:
        raise OutOfRange("OUTSIDE_OF_VERSION", f"{wanted} is outside of the version: 0 to {end - 1}", offset=wanted)
    index = bisect_right(starts, wanted) - 1
    return index, wanted - starts[index]


def raw_rows(content: bytes) -> list[bytes]:
    """The rows of a chunk as canonical JSON, without newlines."""
    return content.removesuffix(b"\n").split(b"\n") if content else []


def rows(content: bytes, format_name: str) -> list[Any]:
    """The rows of a chunk as canonical structs (`MessagesRow`, …)."""
    return msgspec.json.Decoder(formats.get(format_name).row).decode_lines(content)
