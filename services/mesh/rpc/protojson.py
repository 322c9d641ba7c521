"""Proto3 JSON → messages, strictly, with every violation at once.

`google.protobuf.json_format` stops at the first mistake, discards bad base64 silently and takes 1.5 for an enum; here a
request is read whole and each wrong field is named. Printing is in protojson_printing. The mapping is that of
https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.mesh.errors import InvalidArgument, Violation
from services.mesh.rpc.protojson_scalars import field_mask_paths, read_scalar, shown

BY_VALUE = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue", "Any"))
BY_TEXT = frozenset(f"google.protobuf.{name}" for name in ("Timestamp", "Duration", "FieldMask"))
WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
# What json_format may raise on a value of the wrong kind, besides its ParseError (a ValueError is one kind of that).
_UNREADABLE = (json_format.Error, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def is_well_known(descriptor: Any) -> bool:
    """Whether a message has a JSON form of its own, so that it counts as one value."""
    return descriptor.full_name in BY_VALUE | BY_TEXT | WRAPPERS


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@functools.cache
def fields_by_any_name(descriptor: Any) -> Mapping[str, FieldDescriptor]:
    """By the name in the proto file and by the one in JSON: both are accepted everywhere."""
    return {f.name: f for f in descriptor.fields} | {f.json_name: f for f in descriptor.fields}


def loads(raw: bytes, field: str = "body") -> Any:
    """Any JSON value. Raises InvalidArgument on `field` that tells line and column."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
            raise ValueError(f"the key {shown(twice)} stands twice in one object")
        return tree

    def constant(word: str) -> Any:
        raise ValueError(f'{word} is not JSON; write "{word}"')

    try:
        return json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        where = {"line": error.lineno, "column": error.colno}
        raise _malformed(field, f"{error.msg} at line {error.lineno} column {error.colno}", **where) from None
    except UnicodeDecodeError as error:
        raise _malformed(field, f"not UTF-8 at byte {error.start}", byte=error.start) from None
    except RecursionError:
        raise _malformed(field, "nested too deep") from None
    except ValueError as error:
        raise _malformed(field, str(error)) from None


def _malformed(field: str, why: str, **metadata: object) -> InvalidArgument:
    error = InvalidArgument([Violation(field, f"is not JSON that can be read: {why}")], "MALFORMED_JSON")
    error.metadata = {key: str(value) for key, value in metadata.items()}
    return error


def fill(message: Message, tree: object, path: str = "") -> list[Violation]:
    """Set the fields that `tree`, a JSON value, has. Returns what is wrong with it, each under `path`."""
    if not isinstance(tree, dict):
        return [Violation(path or "body", f"must be a JSON object (got {shown(tree)})")]
    violations: list[Violation] = []
    known = fields_by_any_name(message.DESCRIPTOR)
    seen: set[str] = set()
    for key, value in tree.items():
        field = known.get(key)
        if field is None:
            violations.append(Violation(_join(path, key), _unknown(message.DESCRIPTOR)))
        elif field.name in seen:
            violations.append(Violation(_join(path, field.name), "is given twice, under both of its names"))
        elif value is not None or accepts_null(field):
            seen.add(field.name)
            violations += oneof_clash(message, field, path) or _set(message, field, value, _join(path, field.name))
    return violations


def accepts_null(field: FieldDescriptor) -> bool:
    """null means absent, except where null is a value."""
    kind = field.message_type or field.enum_type
    return kind is not None and kind.full_name in ("google.protobuf.Value", "google.protobuf.NullValue")


def oneof_clash(message: Message, field: FieldDescriptor, path: str) -> list[Violation]:
    oneof = field.containing_oneof
    if oneof is None:
        return []
    other: Any = message.WhichOneof(oneof.name)
    if other is None or other == field.name:
        return []
    return [Violation(_join(path, field.name), f"cannot be given together with {_join(path, other)}")]


def _set(message: Message, field: FieldDescriptor, value: Any, path: str) -> list[Violation]:
    if is_map(field):
        return _set_map(message, field, value, path)
    if field.is_repeated:
        return _set_list(message, field, value, path)
    if field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        return fill_any(inner, value, path)
    return _attempt(path, lambda: setattr(message, field.name, read_scalar(field, value)))


def fill_any(message: Message, value: Any, path: str) -> list[Violation]:
    """Like `fill`, for a message of any type, well-known ones too."""
    name = message.DESCRIPTOR.full_name
    if name in WRAPPERS:
        wrapped: Any = message.DESCRIPTOR.fields_by_name["value"]
        return _attempt(path, lambda: setattr(message, "value", read_scalar(wrapped, value)))
    if name in BY_TEXT:
        return _attempt(path, lambda: _read_text(message, value))
    if name in BY_VALUE:
        return _attempt(path, lambda: json_format.ParseDict(value, message))
    return fill(message, value, path)


def _read_text(message: Any, value: Any) -> None:
    kind = message.DESCRIPTOR.name
    if not isinstance(value, str):
        raise ValueError(f"must be a string that holds a {kind} (got {shown(value)})")
    if kind == "FieldMask":
        message.paths.extend(field_mask_paths(value))
        return
    example = "2026-01-31T10:00:00Z" if kind == "Timestamp" else "3.5s"
    try:
        message.FromJsonString(value)
    except _UNREADABLE:
        raise ValueError(f"must be a {kind}, such as {example} (got {shown(value)})") from None


def _set_list(message: Message, field: FieldDescriptor, values: Any, path: str) -> list[Violation]:
    if not isinstance(values, list):
        return [Violation(path, f"must be a JSON array (got {shown(values)})")]
    target = getattr(message, field.name)
    violations: list[Violation] = []
    for index, value in enumerate(values):
        place = f"{path}[{index}]"
        if field.message_type is not None:
            violations += fill_any(target.add(), value, place)
        else:
            violations += _attempt(place, functools.partial(_append, target, field, value))
    return violations


def _append(target: Any, field: FieldDescriptor, value: Any) -> None:
    target.append(read_scalar(field, value))


def _set_map(message: Message, field: FieldDescriptor, tree: Any, path: str) -> list[Violation]:
    if not isinstance(tree, dict):
        return [Violation(path, f"must be a JSON object (got {shown(tree)})")]
    target = getattr(message, field.name)
    entry: Any = field.message_type
    key_field, value_field = entry.fields_by_name["key"], entry.fields_by_name["value"]
    violations: list[Violation] = []
    for text, value in tree.items():
        place = f"{path}[{text!r}]"
        try:
            key = read_scalar(key_field, text, as_text=True)
        except ValueError as error:
            violations.append(Violation(place, f"key {error}"))
            continue
        if value_field.message_type is not None:
            violations += fill_any(target[key], value, place)
        else:
            violations += _attempt(place, functools.partial(_put, target, key, value_field, value))
    return violations


def _put(target: Any, key: Any, field: FieldDescriptor, value: Any) -> None:
    target[key] = read_scalar(field, value)


def _attempt(path: str, action: Callable[[], object]) -> list[Violation]:
    try:
        action()
    except RecursionError:
        return [Violation(path, "is nested too deep")]
    except _UNREADABLE as error:
        return [Violation(path, str(error) or "cannot be read")]
    return []


def _unknown(descriptor: Any) -> str:
    return "unknown field; one of " + ", ".join(field.name for field in descriptor.fields)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
