"""JSON Lines: one object a line. Also cuts the lines for CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from services.dataset.containers.batches import BLOCK_BYTES, Batches, Broken, ByteStream, Texts
from services.dataset.findings import Reason
from services.dataset.limits import Limits


def too_long(line: int | None, limit: int) -> Broken:
    return Broken(line, Reason.ROW_TOO_LONG, f"is longer than {limit} bytes; split it or shorten its texts")


def read(stream: ByteStream, limits: Limits, block_bytes: int = BLOCK_BYTES) -> Batches:
    """Lines in blocks. What comes out, taken together, does not depend on how the stream cuts its reads."""
    for first_line, lines in line_blocks(stream, limits.row_bytes, block_bytes):
        if None not in lines:
            yield Texts(cast("list[bytes]", lines), first_line)
            continue
        start = 0
        for index, line in enumerate(lines):
            if line is None:
                if index > start:
                    yield Texts(_whole(lines[start:index]), first_line + start)
                yield too_long(first_line + index, limits.row_bytes)
                start = index + 1
        if start < len(lines):
            yield Texts(_whole(lines[start:]), first_line + start)


def _whole(lines: list[bytes | None]) -> list[bytes]:
    return [line for line in lines if line is not None]


def line_blocks(stream: ByteStream, limit: int, block_bytes: int) -> Iterator[tuple[int, list[bytes | None]]]:
    """(number of the first line, lines without their newline); None stands for a line of more than `limit` bytes.

    Of a longer line no more than `limit` plus a block is ever held.
    """
    line, carry, skipping = 1, b"", False
    while block := stream.read(block_bytes):
        pieces = block.split(b"\n")
        pieces[0] = carry + pieces[0]
        carry = pieces.pop()
        if pieces:
            yield line, _limited(pieces, limit, first_skipped=skipping)
            line, skipping = line + len(pieces), False
        if len(carry) > limit:
            carry, skipping = b"", True
    if carry or skipping:
        yield line, _limited([carry], limit, first_skipped=skipping)


def _limited(lines: list[bytes], limit: int, first_skipped: bool) -> list[bytes | None]:
    if not first_skipped and max(map(len, lines)) <= limit:
        return cast("list[bytes | None]", lines)
    limited = [line if len(line) <= limit else None for line in lines]
    return [None, *limited[1:]] if first_skipped else limited
