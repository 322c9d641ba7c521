"""A spelling is one common way to write the rows of a format: which keys tell it, and how it becomes canonical.

Each spelling is read in two ways that must agree (a property test holds them together): `quick` takes a row decoded
straight into a typed struct and gives up (None) at the slightest doubt; `explain` takes any row and says everything
that is wrong with it.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import msgspec
from msgspec import UNSET, UnsetType

from services.dataset.reading import metadata
from services.dataset.reading.findings import Problems, Reason, kind, shown
from services.dataset.reading.message import MEDIA_KEYS, refuse_media
from services.dataset.reading.rows import Message, Row

Fields = dict[str, Any]
Rename = Callable[[Fields, Problems], Fields]
"""Gives the keys of a row the format's names."""

# Where keys of messages lie in the metadata of a row: {"messages[2]": {"timestamp": …}}.
MESSAGE_KEYS = "message_keys"
# What makes rows of conversations those of KTO, by TRL and by LLaMA-Factory.
KTO_KEYS = ("label", "kto_tag")
# Keys that are looked at in each row: rows with them are never read on the fast path.
WATCHED_KEYS = frozenset({*MEDIA_KEYS, *KTO_KEYS, "tools"})
_SHOWN_SPELLINGS = 6
_INDEX = re.compile(r"\[\d+\]")


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


@dataclass(frozen=True)
class Canonical:
    """A row as it is stored, and which of its keys went to its metadata."""

    spelling: Spelling
    row: Row
    kept_keys: list[str]


def renamed_source(name: str, fields: dict[str, tuple[str, Any]]) -> type[Source]:
    """A struct with each of `fields` (attribute → key of the row, type) beside what a Source has; a type that takes
    UNSET makes it optional."""

    def field(key: str, type_: Any) -> Any:
        optional = UnsetType in typing.get_args(type_)
        return msgspec.field(name=key, default=UNSET) if optional else msgspec.field(name=key)

    made = msgspec.defstruct(
        name,
        [(attribute, type_, field(key, type_)) for attribute, (key, type_) in fields.items()],
        bases=(Source,),
        gc=False,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    return cast("type[Source]", made)


def own_keys(source: type[Source]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(source))


def canonical(entry: type[Format], value: Any, problems: Problems, rename: Rename | None = None) -> Canonical | None:
    """The canonical form of any decoded row, or None with at least one problem reported."""
    if not isinstance(value, dict):
        problems.add("", Reason.NOT_AN_OBJECT, f"the row is {kind(value)}; an object expected")
        return None
    fields = {str(key): item for key, item in value.items() if item is not None}
    if rename:
        fields = rename(fields, problems)
    spelling = recognise(entry, fields)
    if spelling is None:
        problems.add("", Reason.UNKNOWN_SPELLING, _unrecognised(entry, value))
        return None
    explicit = _explicit_metadata(fields, problems)
    row = spelling.explain(fields, problems)
    _refuse(entry, fields, problems)
    if problems.unread:
        if MESSAGE_KEYS in fields:
            problems.add(MESSAGE_KEYS, Reason.CONFLICT, "is the place of keys of messages; rename the key of the row")
        fields[MESSAGE_KEYS] = problems.unread
    extras = _extras(fields, explicit, problems)
    if row is None or problems.found:
        return None
    row.metadata = extras or UNSET
    return Canonical(spelling, row, _kept_keys(fields, problems))


def _refuse(entry: type[Format], fields: Fields, problems: Problems) -> None:
    """Reports what stands beside the texts of a row and makes them something else than what would be trained."""
    refuse_media(fields, "", problems)
    if not _is_empty(fields.get("tools")):
        message = "definitions of tools are not rendered; write them into the system message and leave the key out"
        problems.add("tools", Reason.TOOL_CALLS, message)
    if entry.name != "messages":
        return
    for key in KTO_KEYS:
        value = fields.get(key)
        if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
            wanted = "keep the good answers and leave the key out, or pair a good with a bad one (format preference)"
            problems.add(
                key, Reason.KTO_LABEL, f"tells good answers from bad ones, which would all be trained; {wanted}"
            )


def _is_empty(value: Any) -> bool:
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def _kept_keys(fields: Fields, problems: Problems) -> list[str]:
    """Names of the keys that went to the metadata: `source`, `messages[].timestamp`."""
    inner = {f"{_INDEX.sub('[]', place)}.{key}" for place, keys in problems.unread.items() for key in keys}
    return [*(key for key in fields if not (problems.unread and key == MESSAGE_KEYS)), *sorted(inner)]


def _unrecognised(entry: type[Format], value: dict[Any, Any]) -> str:
    told = list(dict.fromkeys(", ".join(s.keys) for s in entry.spellings))
    known = "; ".join(told[:_SHOWN_SPELLINGS]) + ("; …" if len(told) > _SHOWN_SPELLINGS else "")
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
