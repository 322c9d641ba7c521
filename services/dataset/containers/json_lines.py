"""JSON Lines: one object a line. Also cuts the lines for CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from services.dataset.containers.batches import BLOCK_BYTES, Batches, Broken, ByteStream, Lines, Texts
from services.dataset.reading.byte_counts import count
from services.dataset.reading.findings import Reason
from services.dataset.reading.limits import Limits

_NEWLINE = ord("\n")


def too_long(line: int | None, limit: int) -> Broken:
    return Broken(line, Reason.ROW_TOO_LONG, f"is longer than {limit} bytes; split it or shorten its texts")


def read(stream: ByteStream, limits: Limits, block_bytes: int = BLOCK_BYTES) -> Batches:
    """Lines in blocks. What comes out, taken together, does not depend on how the stream cuts its reads."""
    line, limit = 1, limits.row_bytes
    for content, first_skipped in _blocks(stream, limit, block_bytes):
        lines = count(content, _NEWLINE) + (not content.endswith(b"\n"))
        if first_skipped or len(content) > limit:
            yield from _some_too_long(_limited(content, limit, first_skipped), line, limit)
        else:
            yield Lines(content, line, lines)
        line += lines


def line_blocks(stream: ByteStream, limit: int, block_bytes: int) -> Iterator[list[bytes | None]]:
    """Lines without their newline; None stands for a line of more than `limit` bytes."""
    for content, first_skipped in _blocks(stream, limit, block_bytes):
        yield _limited(content, limit, first_skipped)


def _blocks(stream: ByteStream, limit: int, block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """(whole lines, whether the first is only the end of a line of more than `limit` bytes).

    Of a longer line no more than `limit` plus a block is ever held.
    """
    carry, skipping = b"", False
    while block := stream.read(block_bytes):
        end = block.rfind(b"\n") + 1
        if end:
            yield carry + block[:end], skipping
            carry, skipping = block[end:], False
        else:
            carry += block
        if len(carry) > limit:
            carry, skipping = b"", True
    if carry or skipping:
        yield carry, skipping


def _limited(content: bytes, limit: int, first_skipped: bool) -> list[bytes | None]:
    limited = [line if len(line) <= limit else None for line in content.removesuffix(b"\n").split(b"\n")]
    return [None, *limited[1:]] if first_skipped else limited


def _some_too_long(lines: list[bytes | None], first_line: int, limit: int) -> Batches:
    start = 0
    for index, line in enumerate([*lines, None]):
        if line is None:
            if index > start:
                yield Texts(cast("list[bytes]", lines[start:index]), first_line + start)
            if index < len(lines):
                yield too_long(first_line + index, limit)
            start = index + 1
