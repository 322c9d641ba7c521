"""Scalars of proto3 JSON: one JSON value, or the text of a path or a query, → the Python value of a field."""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]{1,400}(\.[0-9]{0,400})?([eE][+-]?[0-9]{1,5})?")
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UPPER = re.compile(r"[A-Z]")


def shown(value: object) -> str:
    """A value in an error message, short."""
    return ascii(value) if len(text := str(value)) <= 60 else ascii(text[:57]) + "…"


def read_scalar(field: FieldDescriptor, value: Any, *, as_text: bool = False) -> Any:
    """`value` as the field holds it. `as_text`: it stood in a path, a query or a map key, so `true` is a bool.

    Raises ValueError that says what would be right.
    """
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _boolean(value, as_text)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(field, value)
    if field.cpp_type in _RANGES:
        return _integer(value, *_RANGES[field.cpp_type])
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _number(value, field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT)
    return _bytes(value) if field.type == FieldDescriptor.TYPE_BYTES else _string(value)


def field_mask_paths(text: str) -> list[str]:
    """`displayName,labels` or `display_name,labels` → snake case. JSON has the former; people write both."""
    paths = [path.strip() for path in text.split(",")] if text else []
    if "" in paths:
        raise ValueError(f"must be field paths with commas between them (got {shown(text)})")
    return [path if "_" in path else _UPPER.sub(lambda upper: "_" + upper[0].lower(), path) for path in paths]


def _boolean(value: Any, as_text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if as_text and value in ("true", "false"):
        return value == "true"
    raise ValueError(f"must be true or false (got {shown(value)})")


def _integer(value: Any, low: int, high: int) -> int:
    number: int | None = None
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        # 1.0 and 1e3 are integers in proto3 JSON.
        real = float(value)
        number = int(real) if real.is_integer() else None
    if number is None or not low <= number <= high:
        raise ValueError(f"must be an integer from {low} to {high} (got {shown(value)})")
    return number


def _number(value: Any, is_float32: bool) -> float:
    if isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    number = math.nan
    if isinstance(value, float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        number = float(value)
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 1024:
        number = float(value) if abs(value) < 2**1023 else math.inf
    if math.isnan(number) or abs(number) > (_FLOAT32_MAX if is_float32 else 1.7976931348623157e308):
        raise ValueError(f'must be a number, "NaN", "Infinity" or "-Infinity" (got {shown(value)})')
    return number


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string (got {shown(value)})")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"has half a surrogate pair at character {error.start}") from None
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        text = value.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            pass
    raise ValueError(f"must be base64 (got {shown(value)})")


def _enum(field: FieldDescriptor, value: Any) -> int:
    kind: Any = field.enum_type
    names = kind.values_by_name
    if isinstance(value, str) and value in names:
        return names[value].number
    if value is None and kind.full_name == "google.protobuf.NullValue":
        return 0
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if is_number or (isinstance(value, str) and _INTEGER.fullmatch(value)):
        # A number that is not named is kept: a newer server may know it.
        return _integer(value, *_RANGES[FieldDescriptor.CPPTYPE_ENUM])
    raise ValueError(f"unknown value {shown(value)}; one of {', '.join(names)}")
