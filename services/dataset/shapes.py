"""The fast path: rows decoded straight into typed structs.

Most files write every row alike. A shape is a spelling plus the extra keys seen so far (`id`, `source`, …), as one
msgspec struct that forbids all other keys; it is learnt from rows that the explaining path has read, and is used only
after it has given the same canonical bytes for that row. Rows that a shape refuses are explained, so a shape may be
strict but never wrong.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
from msgspec import UNSET

from services.dataset import metadata
from services.dataset.rows import Row, encode
from services.dataset.spellings import Format, Source, Spelling

MAX_EXTRAS = 64
MAX_ATTEMPTS = 8

# All that decoding or converting hostile input can raise.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError)


# Values that are metadata as they are. (None is not: absent and null keys are one.)
_PLAIN = frozenset({str, int, bool})


class Shape:
    """One spelling with a set of extra keys."""

    def __init__(self, spelling: Spelling, extras: frozenset[str]) -> None:
        self.spelling = spelling
        self.extras = extras
        self._quick = spelling.quick
        # JSON keys need not be identifiers: extra_0, extra_1, … each under its own name.
        self._keys = sorted(extras)
        attributes = [f"extra_{index}" for index in range(len(self._keys))]
        self._values = _getter(attributes)
        source = _with_extras(spelling.source, list(zip(attributes, self._keys, strict=True)))
        self.source = source
        self.decode: Callable[[bytes], Any] = msgspec.json.Decoder(source).decode

    def convert_all(self, values: list[dict[str, Any]]) -> list[Any]:
        return msgspec.convert(values, list[self.source])

    def canonical(self, source: Any) -> Row | None:
        """The canonical row, or None where the explaining path must decide."""
        row = self._quick(source)
        if row is None:
            return row
        values = self._values(source)
        if source.metadata is UNSET and row.metadata is UNSET and _PLAIN.issuperset(map(type, values)):
            if values:
                row.metadata = dict(zip(self._keys, values, strict=True))
            return row
        extras: dict[str, Any] = {} if row.metadata is UNSET else row.metadata  # type: ignore[assignment]
        extras |= {key: value for key, value in zip(self._keys, values, strict=True) if value not in (None, UNSET)}
        explicit = None if source.metadata is UNSET else source.metadata
        try:
            row.metadata = metadata.merge(extras, explicit) or UNSET
        except (metadata.TooDeepError, metadata.UnsupportedTypeError):
            return None
        return row


def _getter(attributes: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if not attributes:
        return lambda source: ()
    get = operator.attrgetter(*attributes)
    return get if len(attributes) > 1 else lambda source: (get(source),)


def _with_extras(source: type[Source], attributes: list[tuple[str, str]]) -> type[Source]:
    if not attributes:
        return source
    fields = [(attribute, Any, msgspec.field(default=UNSET, name=key)) for attribute, key in attributes]
    made = msgspec.defstruct(
        source.__name__, fields, bases=(source,), kw_only=True, gc=False, forbid_unknown_fields=True
    )
    return cast("type[Source]", made)


class Shapes:
    """The shapes known so far, the last one that fitted first. One a spelling, so their number is bounded."""

    def __init__(self, entry: type[Format]) -> None:
        self._entry = entry
        self._known: list[Shape] = []
        self._attempts: dict[str, int] = {}

    @property
    def first(self) -> Shape | None:
        return self._known[0] if self._known else None

    def __iter__(self) -> Iterator[Shape]:
        return iter(tuple(self._known))

    def fitted(self, shape: Shape) -> None:
        if self._known[0] is not shape:
            self._known.remove(shape)
            self._known.insert(0, shape)

    def learn(self, spelling: Spelling, value: dict[str, Any], row: Row) -> None:
        """Learns from a row that the explaining path read as `row`."""
        attempts = self._attempts[spelling.name] = self._attempts.get(spelling.name, 0) + 1
        known = next((shape for shape in self._known if shape.spelling is spelling), None)
        if attempts > MAX_ATTEMPTS + (len(known.extras) if known else 0):
            return
        extras = (frozenset(value) - _own_keys(spelling)) | (known.extras if known else frozenset())
        if len(extras) > MAX_EXTRAS or (known and extras == known.extras) or self._hides(spelling, extras):
            return
        shape = Shape(spelling, extras)
        if not _gives(shape, value, row):
            return
        if known:
            self._known.remove(known)
        self._known.insert(0, shape)

    def _hides(self, spelling: Spelling, extras: frozenset[str]) -> bool:
        """Whether rows of a spelling that takes precedence would fit as well."""
        keys = extras | _own_keys(spelling)
        before = self._entry.spellings[: list(self._entry.spellings).index(spelling)]
        return any(keys.issuperset(other.keys) for other in before)


def _own_keys(spelling: Spelling) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(spelling.source))


def _gives(shape: Shape, value: dict[str, Any], row: Row) -> bool:
    try:
        found = shape.canonical(msgspec.convert(value, shape.source))
        return found is not None and encode(found) == encode(row)
    except DECODE_ERRORS:
        return False
