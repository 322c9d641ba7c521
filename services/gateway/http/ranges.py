"""Range, If-Range and If-None-Match of RFC 9110, for one range of bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """Bytes from `start` to before `end` of `size`."""

    start: int
    end: int
    size: int
    partial: bool

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def choose(headers: Mapping[str, str], size: int, etag: str) -> Span | None:
    """What to send: the whole unless a single range was asked for of this very content; None when there is no such
    range. A header that cannot be read, or asks for several ranges, is ignored as RFC 9110 allows."""
    whole = Span(0, size, size, partial=False)
    found = _RANGE.fullmatch(headers.get("range", ""))
    if found is None or headers.get("if-range", etag) != etag:
        return whole
    first, last = found[1], found[2]
    if not first and not last:
        return whole
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return whole
    return Span(start, end, size, partial=True) if start < end else None


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """Whether the client has this content already."""
    tags = (tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(","))
    return any(tag in ("*", etag) for tag in tags)
