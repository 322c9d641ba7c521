"""Keyset pages: a token holds where the last page ended and a hash of the filters it was made with."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.mesh.errors import InvalidArgument

T = TypeVar("T")

DEFAULT_SIZE = 50
MAX_SIZE = 1000


@dataclass(frozen=True)
class Page(Generic[T]):
    items: Sequence[T]
    # Empty on the last page.
    next_token: str


@dataclass(frozen=True)
class PageRequest:
    """`size` rows after `after`, a sort key's values; None starts at the beginning."""

    size: int
    after: tuple[str | int, ...] | None
    filter_hash: str

    @classmethod
    def parse(cls, page_size: int, page_token: str, *filters: object) -> PageRequest:
        """Check what a caller sent: 0 → 50, more than 1000 → 1000. `filters` is everything else that shapes the list,
        the parent included. Raises InvalidArgument for a negative size and for a token of another list."""
        if page_size < 0:
            raise InvalidArgument.of("page_size", f"must not be negative (got {page_size})")
        size = min(page_size or DEFAULT_SIZE, MAX_SIZE)
        # Sets and repeated fields count sorted; anything that is not JSON is a mistake of ours and a TypeError.
        text = json.dumps(filters, default=sorted)
        filter_hash = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(size, _read(page_token, filter_hash) if page_token else None, filter_hash)

    def page(self, rows: Sequence[T], key: Callable[[T], tuple[str | int, ...]]) -> Page[T]:
        """A page of `rows`, of which the caller fetched `size + 1` to learn whether more follow."""
        items = rows[: self.size]
        if len(rows) <= self.size:
            return Page(items, "")
        return Page(items, self.token(key(items[-1])))

    def token(self, key: tuple[str | int, ...]) -> str:
        """The token of the page that starts after `key`."""
        text = json.dumps([self.filter_hash, *key], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(token: str, filter_hash: str) -> tuple[str | int, ...]:
    try:
        made_with, *key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if not key or not all(type(value) in (str, int) for value in key):
            raise ValueError("not a key")
    except (ValueError, TypeError, RecursionError):
        raise InvalidArgument.of("page_token", "is not a token that a list returned") from None
    if made_with != filter_hash:
        raise InvalidArgument.of("page_token", "belongs to a list with another parent or other filters")
    return tuple(key)
