"""Plain, gzip or Zstandard bytes as one bounded stream."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import IO, Any

from services.dataset.containers.batches import BLOCK_BYTES
from services.dataset.reading.findings import UnreadableFile
from services.dataset.reading.limits import Limits

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
# Skippable frames, which a Zstandard file may begin with: 0x184D2A50 to 0x184D2A5F, little-endian.
_SKIPPABLE = b"\x2a\x4d\x18"


def detect(head: bytes) -> str:
    """The compression by the first bytes: gzip, zstd or none."""
    if head[1:4] == _SKIPPABLE and head[0] & 0xF0 == 0x50:
        return "zstd"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "none")


class DecompressedStream:
    """The decompressed bytes of a file. Memory is bounded whatever the file claims: pyarrow inflates into a buffer of
    the size asked for, and refuses Zstandard windows over 128 MiB.

    `read` raises UnreadableFile for damaged or truncated data and for bombs.
    """

    def __init__(self, path: Path, compression: str, limits: Limits) -> None:
        self._limits = limits
        self._file: IO[bytes] = path.open("rb")
        self._head = b""
        self.compressed_bytes = path.stat().st_size
        self.bytes_out = 0
        self._source: Any = self._file
        self._errors: tuple[type[Exception], ...] = (OSError, MemoryError)
        self.compressed = compression != "none"
        if self.compressed:
            import pyarrow as pa  # here: it takes longer than reading some megabytes of JSON lines, which do without

            self._source = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), compression)
            self._errors += (pa.ArrowException,)

    def close(self) -> None:
        self._file.close()

    @property
    def bytes_in(self) -> int:
        """Bytes of the file itself read so far: what a progress bar shows."""
        return min(self._file.tell(), self.compressed_bytes)

    def read(self, size: int, /) -> bytes:
        if self._head:
            taken, self._head = self._head[:size], self._head[size:]
            return taken
        return self._inflate(size)

    def peek(self, size: int) -> bytes:
        """The next `size` bytes (fewer at the end of the stream), left in place."""
        pieces, have = [self._head], len(self._head)
        while have < size and (piece := self._inflate(min(BLOCK_BYTES, size - have))):
            pieces.append(piece)
            have += len(piece)
        self._head = b"".join(pieces)
        return self._head[:size]

    def skip_byte_order_mark(self) -> None:
        if self.peek(3) == codecs.BOM_UTF8:
            self.read(3)

    def _inflate(self, size: int) -> bytes:
        try:
            piece = self._source.read(size)
        except self._errors as error:
            raise UnreadableFile("DAMAGED_FILE", f"the compressed data is damaged or cut short: {error}") from None
        self.bytes_out += len(piece)
        self._check_limits()
        return piece

    def _check_limits(self) -> None:
        limits, out = self._limits, self.bytes_out
        if out > limits.decompressed_bytes:
            raise UnreadableFile("FILE_TOO_LARGE", f"decompresses to more than {limits.decompressed_bytes} bytes")
        if out > limits.ratio_grace_bytes and out > limits.ratio * max(self.compressed_bytes, 1):
            raise UnreadableFile("COMPRESSION_RATIO", f"decompresses to over {limits.ratio} times its size: a bomb")
