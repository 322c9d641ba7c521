"""What a row carries besides its training content: every key that its spelling does not use.

Nothing a person uploaded is lost: unknown keys of a row go to `metadata` (unknown keys of a single message do not).
So that the same rows give the same hashes from any container, what a container cannot tell apart is made equal:
an absent key and a null one (Parquet fills the keys of a struct with nulls), NaN and null (pandas writes missing
numbers as NaN), a time and its ISO 8601 text, bytes and their base64 text.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

# A row goes over the wire as a google.protobuf.Struct: three levels of messages for each of an object, of at most 100.
MAX_DEPTH = 24
_PLAIN = (str, int, bool)


class TooDeepError(Exception):
    """Nested deeper than MAX_DEPTH."""


class UnsupportedTypeError(Exception):
    """A value that JSON has no form for."""


def clean(value: Any, depth: int = 0) -> Any:
    """`value` as deterministic JSON. Raises TooDeepError or UnsupportedTypeError."""
    if type(value) in _PLAIN or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        raise TooDeepError
    if isinstance(value, dict):
        pairs = ((str(key), clean(item, depth + 1)) for key, item in value.items())
        return {key: item for key, item in pairs if item is not None}
    if isinstance(value, (list, tuple)):
        return [clean(item, depth + 1) for item in value]
    return _other(value)


def _other(value: Any) -> Any:
    """Dates, decimals, UUIDs and bytes, as a typed container holds them."""
    try:
        return msgspec.to_builtins(value)
    except (TypeError, ValueError, NotImplementedError, OverflowError) as error:
        raise UnsupportedTypeError(type(value).__name__) from error


def merge(extras: dict[str, Any], explicit: dict[str, Any] | None) -> dict[str, Any]:
    """The metadata of a row: its unknown keys, under those of its own `metadata`, which win."""
    merged = clean(extras)
    if explicit:
        merged |= clean(explicit)
    return merged
