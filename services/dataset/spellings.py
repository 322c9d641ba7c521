"""A spelling is one common way to write the rows of a format: which keys tell it, and how it becomes canonical.

Each spelling is read in two ways that must agree (a property test holds them together): `quick` takes a row decoded
straight into a typed struct and gives up (None) at the slightest doubt; `explain` takes any row and says everything
that is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from services.dataset import metadata
from services.dataset.findings import Problems, Reason, kind, shown
from services.dataset.rows import Message, Row

Fields = dict[str, Any]


class Source(msgspec.Struct, gc=False, forbid_unknown_fields=True, kw_only=True):
    """Base of the structs that rows are decoded into on the fast path, one per spelling. Optional fields are UNSET
    when absent, so that encoding a source again gives the keys that were there."""

    metadata: dict[str, Any] | UnsetType | None = UNSET


@dataclass(frozen=True)
class Spelling:
    """`keys`, all present and not null, tell it. `explain` pops what it uses from the fields: the rest is metadata."""

    name: str
    keys: tuple[str, ...]
    explain: Callable[[Fields, Problems], Row | None]
    source: type[Source]
    quick: Callable[[Any], Row | None]
    keeps_keys: bool = False
    """Whether `quick` gives rows with the very keys of the source."""


class Format(Protocol):
    """An entry of the registry `formats`. The first of `spellings` whose keys are all there is the row's."""

    name: ClassVar[str]
    row: ClassVar[type[Row]]
    spellings: ClassVar[tuple[Spelling, ...]]

    @staticmethod
    def turns(row: Any) -> Iterable[Message]:
        """Every message of a canonical row, for statistics."""
        ...


def recognise(entry: type[Format], fields: Fields) -> Spelling | None:
    return next((s for s in entry.spellings if all(key in fields for key in s.keys)), None)


def canonical(entry: type[Format], value: Any, problems: Problems) -> tuple[Spelling, Row] | None:
    """The canonical form of any decoded row, or None with at least one problem reported."""
    if not isinstance(value, dict):
        problems.add("", Reason.NOT_AN_OBJECT, f"the row is {kind(value)}; an object expected")
        return None
    fields = {str(key): item for key, item in value.items() if item is not None}
    spelling = recognise(entry, fields)
    if spelling is None:
        problems.add("", Reason.UNKNOWN_SPELLING, _unrecognised(entry, value))
        return None
    explicit = _explicit_metadata(fields, problems)
    row = spelling.explain(fields, problems)
    extras = _extras(fields, explicit, problems)
    if row is None or problems.found:
        return None
    row.metadata = extras or UNSET
    return spelling, row


def _unrecognised(entry: type[Format], value: dict[Any, Any]) -> str:
    known = "; ".join(dict.fromkeys(", ".join(s.keys) for s in entry.spellings))
    has = ", ".join(shown(str(key)) for key in list(value)[:10]) or "no keys"
    return f"has {has}; a row of format {entry.name} has one of: {known}"


def _explicit_metadata(fields: Fields, problems: Problems) -> Fields | None:
    given = fields.pop("metadata", None)
    if given is None or isinstance(given, dict):
        return given
    problems.add("metadata", Reason.WRONG_TYPE, f"is {kind(given)}; an object expected")
    return None


def _extras(fields: Fields, explicit: Fields | None, problems: Problems) -> Fields:
    try:
        return metadata.merge(fields, explicit)
    except metadata.TooDeepError:
        problems.add("metadata", Reason.TOO_DEEP, f"is nested deeper than {metadata.MAX_DEPTH} levels")
    except metadata.UnsupportedTypeError as error:
        problems.add("metadata", Reason.UNSUPPORTED_TYPE, f"holds a value of type {error}, which JSON has no form for")
    return {}
