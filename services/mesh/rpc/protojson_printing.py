"""Messages → proto3 JSON, as json_format.MessageToDict prints them with their zero values, several times as fast.

How each field is printed is found once for each type; json_format asks again for each value of each message.
"""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Callable
from typing import Any

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal import type_checkers
from google.protobuf.message import Message

from services.mesh.rpc.protojson import BY_TEXT, BY_VALUE, WRAPPERS, is_map

# A value of a field → what JSON holds for it.
_Print = Callable[[Any], Any]
_INT64 = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_encoder = msgspec.json.Encoder()
# From here on a double no longer tells every whole number from the next.
_EXACT = 2.0**53


def dumps(tree: Any) -> bytes:
    return _encoder.encode(tree)


def tree(message: Message) -> Any:
    """What JSON holds for `message`, in the order of its fields; those without presence also where they are zero.

    Raises json_format.Error or ValueError for what JSON cannot hold, such as NaN in a Struct or the year 10000.
    """
    return _printer(message.DESCRIPTOR)(message)


@functools.cache
def _printer(descriptor: Any) -> _Print:
    name = descriptor.full_name
    if name in BY_TEXT:
        return lambda message: message.ToJsonString()
    if name in WRAPPERS:
        printed = _value(descriptor.fields_by_name["value"])
        return lambda message: printed(message.value)
    if name in BY_VALUE:
        # Holds messages of any type, or says what cannot be printed.
        whole = functools.partial(json_format.MessageToDict, always_print_fields_with_no_presence=True)
        return whole if name == "google.protobuf.Any" else lambda message: _plain(whole(message))
    # Filled at the first message: a type may hold itself.
    fields: list[tuple[str, str, bool, _Print]] = []
    return functools.partial(_print, descriptor, fields)


def _print(descriptor: Any, fields: list[tuple[str, str, bool, _Print]], message: Any) -> dict[str, Any]:
    if not fields:
        fields += [(f.name, f.json_name, f.has_presence, _field(f)) for f in descriptor.fields]
    return {
        json_name: printed(getattr(message, name))
        for name, json_name, has_presence, printed in fields
        if not has_presence or message.HasField(name)
    }


def _field(field: FieldDescriptor) -> _Print:
    if is_map(field):
        entry: Any = field.message_type
        printed = _value(entry.fields_by_name["value"])
        # Looking a message up keeps it; `items` would copy it.
        return lambda values: {_key(key): printed(values[key]) for key in values}
    printed = _value(field)
    if field.is_repeated:
        return lambda values: [printed(value) for value in values]
    return printed


def _key(key: Any) -> str:
    return ("true" if key else "false") if isinstance(key, bool) else str(key)


def _value(field: FieldDescriptor) -> _Print:
    """For one value, also of a repeated field."""
    if field.message_type is not None:
        return _printer(field.message_type)
    if field.enum_type is not None:
        return _enum(field.enum_type)
    if field.cpp_type in _INT64:
        return str
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return _double
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        return _float
    return _bytes if field.type == FieldDescriptor.TYPE_BYTES else _same


def _enum(kind: Any) -> _Print:
    if kind.full_name == "google.protobuf.NullValue":
        return lambda _: None
    # A number that this version has no name for stays one.
    names: dict[int, str] = {value.number: value.name for value in reversed(kind.values)}
    return lambda number: names.get(number, number)


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _float(value: float) -> float | str:
    return type_checkers.ToShortestFloat(value) if math.isfinite(value) else _double(value)


def _plain(value: Any) -> Any:
    """A Struct knows only doubles: whole numbers are printed whole, as their JSON was written."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def _bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _same(value: Any) -> Any:
    return value
