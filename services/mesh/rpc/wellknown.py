"""Well-known messages and those of `rlhf.type.v1` from plain values, and back: what every service's wire needs."""

from __future__ import annotations

import inspect
from datetime import datetime
from typing import Any, overload

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from rlhf.type.v1 import registry_entry_pb2

from services.mesh import registry
from services.mesh.rpc.interceptors import DOMAIN


@overload
def timestamp(moment: datetime) -> timestamp_pb2.Timestamp: ...
@overload
def timestamp(moment: None) -> None: ...
@overload
def timestamp(moment: datetime | None) -> timestamp_pb2.Timestamp | None: ...
def timestamp(moment: datetime | None) -> timestamp_pb2.Timestamp | None:
    """None stays None, which leaves a field unset."""
    if moment is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(moment)
    return message


def struct(message: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct holds every number as a double; whole ones are read as integers, as their JSON was written.

    What JSON cannot hold, such as NaN, stays as it is: whoever wants a number there says so.
    """
    return {key: _plain(value) for key, value in message.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return struct(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    return getattr(value, kind) if kind in ("string_value", "bool_value") else None


def to_struct(values: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(values, struct_pb2.Struct())


def status(error: dict[str, Any] | None) -> status_pb2.Status:
    """A stored error as google.rpc.Status; empty for none."""
    if not error:
        return status_pb2.Status()
    found = status_pb2.Status(code=code_pb2.Code.Value(error["code"]), message=error["message"])
    metadata = {key: str(value) for key, value in error.get("metadata", {}).items()}
    info = error_details_pb2.ErrorInfo(reason=error.get("reason", ""), domain=DOMAIN, metadata=metadata)
    found.details.add().Pack(info)
    return found


def registry_entry(
    name: str, entry: type[Any], params_schema: dict[str, Any] | None = None
) -> registry_entry_pb2.RegistryEntry:
    """What an entry of a registry says of itself: its docstring, and the JSON Schema of its parameters."""
    return registry_entry_pb2.RegistryEntry(
        id=name,
        summary=registry.summary(entry),
        description=inspect.getdoc(entry) or "",
        params_schema=to_struct(params_schema) if params_schema is not None else None,
    )
