"""Keys of a file read under other names: {"question": "prompt", "answer": "completion"}.

Rows are renamed before their spelling is told. On the fast path nothing is renamed: the structs that rows are decoded
into have the file's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from services.dataset.reading.findings import Problems, Reason
from services.dataset.reading.input_layouts import Fields, Format, Source, own_keys

MAX_KEYS = 32
MAX_KEY_CHARACTERS = 200
# Keys that a spelling reads beside those that tell it.
_BESIDE = ("system", "system_prompt", "history", "input", "context", "metadata")


def targets(entry: type[Format]) -> list[str]:
    """The names that keys can be given."""
    told = [key for spelling in entry.spellings for key in (*spelling.keys, *sorted(own_keys(spelling.source)))]
    return list(dict.fromkeys([*told, *_BESIDE]))


class FieldMapping:
    """`names` maps keys of the file to those of the format; both are distinct. Empty: everything keeps its name."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.names = dict(names or {})
        self._used: set[str] = set()
        self._sources: dict[type[Source], type[Source]] = {}

    @property
    def unused(self) -> list[str]:
        """Keys that no row had."""
        return [key for key in self.names if key not in self._used]

    def rename(self, fields: Fields, problems: Problems) -> Fields:
        """The row under the format's names. A key that stands in the way of a renamed one is reported."""
        given = self.names.keys() & fields.keys()
        self._used |= given
        for key in sorted(given):
            name = self.names[key]
            if name in fields and name not in self.names:
                problems.add(key, Reason.CONFLICT, f"is read as {name}, which the row has besides; keep one of them")
        return {self.names.get(key, key): value for key, value in fields.items()}

    def renamed(self, keys: frozenset[str]) -> frozenset[str]:
        return frozenset(self.names.get(key, key) for key in keys) if self.names else keys

    def stands_in_the_way(self, keys: frozenset[str]) -> bool:
        """Whether a row with these keys, which were not renamed, could have a renamed one of the same name, or has one
        that is to be renamed."""
        return not keys.isdisjoint(self.names.values()) or not keys.isdisjoint(self.names)

    def source(self, source: type[Source]) -> type[Source]:
        """`source` with the file's names."""
        if not self.names:
            return source
        if source not in self._sources:
            self._sources[source] = self._remade(source)
        return self._sources[source]

    def learnt(self, keys: frozenset[str]) -> None:
        """Rows with these keys are read without a look at each."""
        self._used |= keys & self.names.keys()

    def _remade(self, source: type[Source]) -> type[Source]:
        of_file = {name: key for key, name in self.names.items()}
        fields: list[tuple[str, Any, Any]] = []
        absent: dict[str, Any] = {}
        for each in msgspec.structs.fields(source):
            if not each.required and each.encode_name in self.names and each.encode_name not in of_file:
                # In the file this key means something else: no row has the field.
                absent[each.name] = each.default
                continue
            field: Any = msgspec.field(name=of_file.get(each.encode_name, each.encode_name))
            if not each.required:
                field = msgspec.field(name=of_file.get(each.encode_name, each.encode_name), default=each.default)
            fields.append((each.name, each.type, field))
        made = msgspec.defstruct(
            source.__name__, fields, namespace=absent, kw_only=True, gc=False, forbid_unknown_fields=True
        )
        return cast("type[Source]", made)
