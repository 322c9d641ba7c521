"""What a container hands on: rows as lines or texts, rows as values, and rows that could not even be cut out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from services.dataset.reading.findings import Reason

BLOCK_BYTES = 1 << 18
"""Read at a time: small enough that a block, its rows and their encoding stay in the processor's cache."""


@dataclass(frozen=True)
class Texts:
    """Rows as JSON text. `first_line` is None where lines mean nothing; blank texts are not rows."""

    texts: list[bytes]
    first_line: int | None

    def line(self, index: int) -> int | None:
        return None if self.first_line is None else self.first_line + index

    def halves(self) -> tuple[Texts, Texts]:
        half = len(self.texts) // 2
        return Texts(self.texts[:half], self.first_line), Texts(self.texts[half:], self.line(half))


@dataclass(frozen=True)
class Lines:
    """Whole lines of JSON, `count` of them, the last perhaps without its newline. Blank lines are not rows."""

    content: bytes
    first_line: int
    count: int

    def texts(self) -> Texts:
        return Texts(self.content.removesuffix(b"\n").split(b"\n"), self.first_line)


@dataclass(frozen=True)
class Values:
    """Rows as Python values, with the line on which each begins where the container has lines."""

    values: list[dict[str, Any]]
    lines: list[int] | None

    def line(self, index: int) -> int | None:
        return None if self.lines is None else self.lines[index]


@dataclass(frozen=True)
class Broken:
    """One row that the container's own rules reject."""

    line: int | None
    reason: Reason
    message: str


Batch: TypeAlias = Lines | Texts | Values | Broken
Batches: TypeAlias = Iterator[Batch]


class ByteStream(Protocol):
    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, at least one unless the stream has ended."""
        ...
