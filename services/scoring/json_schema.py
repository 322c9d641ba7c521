"""A text against a JSON Schema (draft 2020-12), both untrusted: bounded in size, depth and work, nothing is fetched.

What could take exponential time or reach outside is not taken: patterns are RE2, `$ref` stays within the schema, and
keywords that need more than one look at a value (`unevaluatedProperties` and the like) are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from services.scoring import regex
from services.scoring.known_schemas import fault_of

Where = Literal["whole", "fenced", "last_line", "after_marker"]

LARGEST_SCHEMA_CHARACTERS = 65_536
DEEPEST_SCHEMA = 32
# Of a text; a longer or a deeper one is no document.
LONGEST_TEXT = 65_536
DEEPEST_DOCUMENT = 32
# Keywords looked at in one validation: beyond it the schema refers to itself without end, or doubles at every level.
MOST_CHECKS = 100_000

_REFUSED = {
    "patternProperties": "its patterns are matched by backtracking; name the properties",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items",
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "use $anchor",
    "$recursiveRef": "use $ref",
    "$id": "references stay within the schema",
}
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
# One document of each kind.
_PROBES = ("null", "true", "1", '""', "[]", "{}")
# In a string an escaped quote ends nothing.
_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
_LONGEST_INTEGER = 300


class BadSchemaError(ValueError):
    """The schema is not one, or not one that is taken here."""


class WorkLimitError(Exception):
    """A validation took more steps than any honest one."""


@dataclass(frozen=True)
class Verdict:
    """`parsed`: the text is a JSON document; `valid`: the schema holds too; `cut`: validation ran into its limit."""

    parsed: bool
    valid: bool
    cut: bool = False


class Schema:
    """A checked schema. Raises BadSchemaError."""

    def __init__(self, schema: Any) -> None:
        if fault := fault_of(schema):
            raise BadSchemaError(fault)
        self._checks = 0
        if fault is None:
            self._verify(schema)
        else:
            self._validator = self._make(schema)

    def _verify(self, schema: Any) -> None:
        """Raises BadSchemaError."""
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError

        _check(schema)
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            path = "".join(f".{part}" for part in error.absolute_path)
            raise BadSchemaError(f"{path.lstrip('.') or 'the schema'}: {error.message[:200]}") from None
        except RecursionError:
            raise BadSchemaError("is nested too deeply") from None
        self._validator = self._make(schema)
        # A reference that leads nowhere shows only when it is followed.
        for target in _references(schema):
            _resolve(schema, target)
        if any(self.judge(probe).cut for probe in _PROBES):
            raise BadSchemaError("refers to itself without end")

    def judge(self, text: str) -> Verdict:
        """Whether `text` is a JSON document that the schema allows."""
        try:
            document = read(text)
        except ValueError:
            return Verdict(parsed=False, valid=False)
        self._checks = 0
        try:
            return Verdict(parsed=True, valid=self._validator.is_valid(document))
        except (WorkLimitError, RecursionError):
            return Verdict(parsed=True, valid=False, cut=True)

    def _make(self, schema: Any) -> Any:
        import referencing
        from jsonschema import Draft202012Validator
        from jsonschema.validators import extend

        changed = {**dict(Draft202012Validator.VALIDATORS), "pattern": _pattern, "uniqueItems": _unique}
        counted = {name: self._counted(check) for name, check in changed.items()}
        # An empty registry: what is not in the schema is nowhere.
        return extend(Draft202012Validator, counted)(schema, registry=referencing.Registry())

    def _counted(self, check: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self._checks += 1
            if self._checks > MOST_CHECKS:
                raise WorkLimitError
            return check(*arguments)

        return counted


def read(text: str) -> Any:
    """A JSON document. Raises ValueError for what is none, is too large, or holds a number beyond a float."""
    if len(text) > LONGEST_TEXT or _too_deep(text):
        raise ValueError("too large")
    try:
        return json.loads(text, parse_constant=_refuse, parse_int=_integer, parse_float=_number)
    except RecursionError:
        raise ValueError("too deep") from None


def locate(text: str, where: Where, marker: str) -> str | None:
    """The part of `text` in which the document is looked for; None where there is no such place.

    `fenced` is the last Markdown block that is opened by ``` or ```json and closed.
    """
    if where == "whole":
        return text
    if where == "last_line":
        return next((line for line in reversed(text.splitlines()) if line.strip()), None)
    if where == "after_marker":
        _, found, after = text.rpartition(marker)
        return after if found else None
    return _last_block(text)


def _too_deep(text: str) -> bool:
    """By its brackets, before anything recurses."""
    depth, in_string = 0, False
    for match in _MARK.finditer(text):
        if match[0] == '"':
            in_string = not in_string
        elif not in_string:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
            if depth > DEEPEST_DOCUMENT:
                return True
    return False


def _last_block(text: str) -> str | None:
    """The content of the last fenced block that is closed. Line by line: a lazy pattern would take quadratic time."""
    last: str | None = None
    block: list[str] | None = None
    for line in text.splitlines():
        fence = line.strip()
        if block is None:
            block = [] if fence.replace(" ", "").lower() in ("```", "```json") else None
        elif fence == "```":
            last, block = "\n".join(block), None
        else:
            block.append(line)
    return last


def _refuse(word: str) -> Any:
    raise ValueError(word)


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError("too long a number")
    return int(digits)


def _number(written: str) -> float:
    value = float(written)
    if not math.isfinite(value):
        raise ValueError("too large a number")
    return value


def _check(schema: Any) -> None:
    """Raises BadSchemaError for what is too large or refused, wherever it stands."""
    if not isinstance(schema, dict):
        raise BadSchemaError("must be an object")
    if schema.get("$schema", _DRAFT).rstrip("#") != _DRAFT:
        raise BadSchemaError(f"$schema: must be {_DRAFT}, or left out")
    depth = _depth(schema)
    if depth > DEEPEST_SCHEMA:
        raise BadSchemaError(f"must be nested at most {DEEPEST_SCHEMA} deep")
    if len(json.dumps(schema)) > LARGEST_SCHEMA_CHARACTERS:
        raise BadSchemaError(f"must be at most {LARGEST_SCHEMA_CHARACTERS} characters long")
    for keyword, value in _keywords(schema):
        if keyword in _REFUSED:
            raise BadSchemaError(f"{keyword} is not taken: {_REFUSED[keyword]}")
        if keyword == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise BadSchemaError(f"$ref must lead into the schema, such as #/$defs/point (got {str(value)[:60]!r})")
        if keyword == "pattern" and isinstance(value, str):
            try:
                regex.compile_pattern(value, False)
            except regex.BadPatternError as error:
                raise BadSchemaError(f"pattern {value[:60]!r}: {error}") from None


def _depth(value: Any) -> int:
    """How deep objects and arrays stand in each other, without recursion."""
    deepest, level = 0, [value]
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        deepest += 1
        if deepest > DEEPEST_SCHEMA:
            break
    return deepest


# Keywords whose value is a table of schemas by a name of the author's choice, which is no keyword.
_TABLES = ("properties", "$defs", "definitions", "dependentSchemas")
# Keywords whose value is data.
_DATA = ("const", "enum", "default", "examples", "required", "dependentRequired", "type")


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(schema, list):
        for item in schema:
            yield from _keywords(item)
    elif isinstance(schema, dict):
        for keyword, value in schema.items():
            yield keyword, value
            if keyword in _TABLES and isinstance(value, dict):
                for inner in value.values():
                    yield from _keywords(inner)
            elif keyword not in _DATA:
                yield from _keywords(value)


def _references(schema: Any) -> Iterator[str]:
    return (value for keyword, value in _keywords(schema) if keyword == "$ref")


def _resolve(schema: Any, reference: str) -> None:
    """Raises BadSchemaError where a reference leads nowhere."""
    import referencing
    import referencing.exceptions
    import referencing.jsonschema

    resource = referencing.Resource.from_contents(schema, referencing.jsonschema.DRAFT202012)
    try:
        referencing.Registry().with_resource("", resource).resolver().lookup(reference)
    except (referencing.exceptions.Unresolvable, referencing.exceptions.NoSuchResource):
        raise BadSchemaError(f"$ref {reference[:60]!r} leads nowhere") from None


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if (
        validator.is_type(instance, "string")
        and regex.match(regex.compile_pattern(pattern, False), instance, "search") is None
    ):
        yield ValidationError("does not match")


def _unique(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[Any]:
    """In linear time; the library compares every pair where items can't be sorted."""
    from jsonschema import ValidationError

    if wanted and validator.is_type(instance, "array") and len(set(map(_identity, instance))) < len(instance):
        yield ValidationError("has items that are equal")


def _identity(value: Any) -> Any:
    """Equal for values that JSON Schema holds equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return "object", frozenset((key, _identity(item)) for key, item in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_identity, value))
    return "boolean" if isinstance(value, bool) else "", value
