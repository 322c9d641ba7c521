"""The fast path: rows decoded straight into typed structs.

Most files write every row alike. A shape is a spelling plus the extra keys seen so far (`id`, `source`, …), as one
msgspec struct that forbids all other keys; it is learnt from rows that the explaining path has read, and is used only
after it has given the same canonical bytes for that row. Rows that a shape refuses are explained, so a shape may be
strict but never wrong.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import msgspec
from msgspec import UNSET, UnsetType

from services.dataset.reading import metadata
from services.dataset.reading.field_mapping import FieldMapping
from services.dataset.reading.input_layouts import WATCHED_KEYS, Format, Source, Spelling, own_keys
from services.dataset.reading.rows import Row, encode

MAX_EXTRAS = 64
MAX_ATTEMPTS = 8

# All that decoding or converting hostile input can raise.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError)


# Values that are metadata as they are. (None is not: absent and null keys are one.)
_PLAIN = frozenset({str, int, bool})
_metadata_of = operator.attrgetter("metadata")


@dataclass(frozen=True)
class Canonical:
    """`plain`: each row had all the extra keys, with texts, whole numbers, true or false, and no other metadata."""

    rows: list[Any]
    plain: bool
    kept_keys: Counter[str]


class Shape:
    """One spelling with a set of extra keys."""

    def __init__(self, spelling: Spelling, extras: frozenset[str], mapping: FieldMapping) -> None:
        self.spelling = spelling
        self.keeps_keys = spelling.keeps_keys and not mapping.names
        self.extras = extras
        self._quick = spelling.quick
        # JSON keys need not be identifiers: extra_0, extra_1, … each under its own name.
        self._keys = sorted(extras)
        named = [(f"extra_{index}", key) for index, key in enumerate(self._keys)]
        self._values = _getter([attribute for attribute, _ in named])
        self._metadata = _plain_metadata(named)
        self.source = _with_extras(mapping.source(spelling.source), named)
        decoder = msgspec.json.Decoder(self.source)
        self.decode: Callable[[bytes], Any] = decoder.decode
        self.decode_lines: Callable[[bytes], list[Any]] = decoder.decode_lines

    def convert_all(self, values: list[dict[str, Any]]) -> list[Any]:
        return msgspec.convert(values, list[self.source])

    def canonical(self, sources: list[Any]) -> Canonical | None:
        """The canonical rows, or None where the explaining path must decide on one of them."""
        rows: list[Any] = list(map(self._quick, sources))
        if not all(rows):
            return None
        extras = list(map(self._values, sources))
        if _PLAIN.issuperset(map(type, chain.from_iterable(extras))) and _no_metadata(sources) and _no_metadata(rows):
            if self._keys:
                for row, values in zip(rows, extras, strict=True):
                    row.metadata = self._metadata(*values)
            return Canonical(rows, plain=True, kept_keys=Counter(dict.fromkeys(self._keys, len(rows))))
        kept_keys = self._count(extras)
        kept_keys.update(chain.from_iterable(row.metadata for row in rows if row.metadata is not UNSET))
        try:
            for row, source, values in zip(rows, sources, extras, strict=True):
                row.metadata = self._merged(row, source, values)
        except (metadata.TooDeepError, metadata.UnsupportedTypeError):
            return None
        return Canonical(rows, plain=False, kept_keys=kept_keys)

    def _count(self, extras: list[tuple[Any, ...]]) -> Counter[str]:
        keys = (zip(self._keys, values, strict=True) for values in extras)
        return Counter(key for key, value in chain.from_iterable(keys) if value is not None and value is not UNSET)

    def _merged(self, row: Any, source: Source, values: tuple[Any, ...]) -> dict[str, Any] | UnsetType:
        extras = {} if row.metadata is UNSET else row.metadata
        extras |= {key: value for key, value in zip(self._keys, values, strict=True) if value not in (None, UNSET)}
        explicit = None if source.metadata is UNSET else source.metadata
        return metadata.merge(extras, explicit) or UNSET


def _no_metadata(rows: list[Any]) -> bool:
    return {UnsetType}.issuperset(map(type, map(_metadata_of, rows)))


def _getter(attributes: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if not attributes:
        return lambda source: ()
    get = operator.attrgetter(*attributes)
    return get if len(attributes) > 1 else lambda source: (get(source),)


def _plain_metadata(named: list[tuple[str, str]]) -> type[msgspec.Struct]:
    """Encodes as the dict of the extras would, their keys being sorted, and is made in a fraction of the time."""
    fields = [(attribute, Any, msgspec.field(name=key)) for attribute, key in named]
    return msgspec.defstruct("PlainMetadata", fields, gc=False)


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

    def __init__(self, entry: type[Format], mapping: FieldMapping | None = None) -> None:
        self._entry = entry
        self._mapping = mapping or FieldMapping()
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
        own = own_keys(self._mapping.source(spelling.source))
        extras = (frozenset(value) - own) | (known.extras if known else frozenset())
        if len(extras) > MAX_EXTRAS or (known and extras == known.extras) or self._hides(spelling, extras):
            return
        if extras & WATCHED_KEYS or self._mapping.stands_in_the_way(extras):
            return
        shape = Shape(spelling, extras, self._mapping)
        if not _gives(shape, value, row):
            return
        if known:
            self._known.remove(known)
        self._known.insert(0, shape)
        self._mapping.learnt(own)

    def _hides(self, spelling: Spelling, extras: frozenset[str]) -> bool:
        """Whether rows of a spelling that takes precedence would fit as well."""
        keys = self._mapping.renamed(extras | own_keys(self._mapping.source(spelling.source)))
        before = self._entry.spellings[: list(self._entry.spellings).index(spelling)]
        return any(keys.issuperset(other.keys) for other in before)


def _gives(shape: Shape, value: dict[str, Any], row: Row) -> bool:
    try:
        found = shape.canonical(shape.convert_all([value]))
        return found is not None and encode(found.rows[0]) == encode(row)
    except DECODE_ERRORS:
        return False
