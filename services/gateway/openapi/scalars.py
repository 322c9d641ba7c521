"""JSON Schemas of scalars and of messages with a JSON form of their own, as the gateway sends and takes them.

What is taken is wider than what is sent: a 64-bit integer as text or as a number, an enum by name or by number.
Source: https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

from typing import Any

from google.api import field_info_pb2
from google.protobuf.descriptor import FieldDescriptor

Schema = dict[str, Any]

_FIELD_INFO: Any = field_info_pb2.field_info
_TEXT_OF_INT64 = {"type": "string", "format": "int64", "pattern": r"^-?[0-9]{1,20}$"}
_UNSIGNED = (
    FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_FIXED64
)  # fmt: skip
_NOT_FINITE = {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}


def scalar(field: FieldDescriptor, *, taken: bool) -> Schema:
    """Of one value of a field that is neither a message nor an enum."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64):
        return _int64(field, taken)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32):
        low, high = (0, 2**32 - 1) if field.type in _UNSIGNED else (-(2**31), 2**31 - 1)
        return {"type": "integer", "format": "int32" if low else "uint32", "minimum": low, "maximum": high}
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        name = "float" if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else "double"
        return {"anyOf": [{"type": "number", "format": name}, dict(_NOT_FINITE)]}
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    is_uuid = field.GetOptions().Extensions[_FIELD_INFO].format == field_info_pb2.FieldInfo.UUID4
    return {"type": "string", "format": "uuid"} if is_uuid else {"type": "string"}


def _int64(field: FieldDescriptor, taken: bool) -> Schema:
    text = dict(_TEXT_OF_INT64)
    low, high = -(2**63), 2**63 - 1
    if field.type in _UNSIGNED:
        text |= {"format": "uint64", "pattern": r"^[0-9]{1,20}$"}
        low, high = 0, 2**64 - 1
    return {"anyOf": [text, {"type": "integer", "minimum": low, "maximum": high}]} if taken else text


def well_known(name: str) -> Schema | None:
    """Of a message of `google.protobuf` by its full name; None for any other message."""
    object_ = {"type": "object", "additionalProperties": True}
    found: dict[str, Schema] = {
        "Timestamp": {"type": "string", "format": "date-time"},
        "Duration": {"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"},
        "FieldMask": {"type": "string", "description": "Paths of fields with commas between them."},
        "Struct": object_,
        "Any": {**object_, "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
        "Value": {},
        "ListValue": {"type": "array", "items": {}},
        "Empty": {"type": "object"},
    }
    package, _, short = name.rpartition(".")
    return found.get(short) if package == "google.protobuf" else None
