"""`components.schemas`: one for each message of an answer, and one for what a client sends of it.

TrainingJob        in answers: what is never left out is required, OUTPUT_ONLY fields are readOnly
TrainingJobInput   in the body of a request: without OUTPUT_ONLY fields, REQUIRED ones required
DatasetPatch       in the body of a PATCH: nothing required
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor

from services.gateway.openapi.scalars import Schema, scalar, well_known
from services.mesh.rpc.protojson import is_map

_BEHAVIOR: Any = field_behavior_pb2.field_behavior
_OUTPUT_ONLY, _REQUIRED, _IDENTIFIER, _IMMUTABLE = (
    field_behavior_pb2.FieldBehavior.Value(name) for name in ("OUTPUT_ONLY", "REQUIRED", "IDENTIFIER", "IMMUTABLE")
)


class Use(enum.Enum):
    """What a message is there for; the value ends the name of its schema."""

    ANSWER = ""
    INPUT = "Input"
    PATCH = "Patch"
    # The whole request, which is in no answer.
    REQUEST = " "


class Schemas:
    """Collects each schema that is referred to. `examples` are values by the name of the schema."""

    def __init__(self, comments: Mapping[str, str], examples: Mapping[str, object]) -> None:
        self._comments = comments
        self._examples = examples
        self._made: dict[str, Schema] = {}
        self._full_names: dict[str, str] = {}

    def all(self) -> dict[str, Schema]:
        return dict(sorted(self._made.items()))

    def message(self, descriptor: Any, use: Use, without: Collection[str] = ()) -> Schema:
        """A reference to the schema of a message, or the schema where it has a JSON form of its own."""
        if (known := well_known(descriptor.full_name)) is not None:
            return known
        if (wrapped := _wrapped(descriptor)) is not None:
            return self.single(wrapped, use)
        name = _short_name(descriptor) + use.value.strip()
        if self._reserve(name, descriptor.full_name):
            self._made[name] = self._object(descriptor, use, without) | self._example(name)
        return _reference(name)

    def enum(self, descriptor: Any) -> Schema:
        name = _short_name(descriptor)
        if self._reserve(name, descriptor.full_name):
            values = "".join(
                f"\n- `{value.name}`" + (f": {text}" if (text := self._comments.get(_sibling(value), "")) else "")
                for value in descriptor.values
            )
            text = self._comments.get(descriptor.full_name, "")
            self._made[name] = {
                "type": "string",
                "description": f"{text}\n{values}".strip(),
                "enum": [value.name for value in descriptor.values],
            }
        return _reference(name)

    def value(self, field: FieldDescriptor, use: Use) -> Schema:
        """Of a field, with its lists and maps."""
        if is_map(field):
            entry: Any = field.message_type
            return {"type": "object", "additionalProperties": self.single(entry.fields_by_name["value"], use)}
        single = self.single(field, use)
        return {"type": "array", "items": single} if field.is_repeated else single

    def single(self, field: FieldDescriptor, use: Use) -> Schema:
        """Of one value of a field."""
        taken = use is not Use.ANSWER
        if field.message_type is not None:
            return self.message(field.message_type, Use.INPUT if taken else use)
        if field.enum_type is not None:
            named = self.enum(field.enum_type)
            return {"anyOf": [named, {"type": "integer", "format": "int32"}]} if taken else named
        return scalar(field, taken=taken)

    def described(self, field: FieldDescriptor, schema: Schema) -> Schema:
        """With the comment of the field; a reference takes one beside it in OpenAPI 3.1."""
        text = "\n\n".join(part for part in (self._comments.get(field.full_name, ""), _one_of(field)) if part)
        return {**schema, "description": text} if text else schema

    def _reserve(self, name: str, full_name: str) -> bool:
        """Whether the schema is still to be made. Raises ValueError when two messages want one name."""
        owner = self._full_names.setdefault(name, full_name)
        if owner != full_name:
            raise ValueError(f"{owner} and {full_name} would both be the schema {name}")
        if name in self._made:
            return False
        self._made[name] = {}
        return True

    def _object(self, descriptor: Any, use: Use, without: Collection[str]) -> Schema:
        properties: dict[str, Schema] = {}
        required: list[str] = []
        for field in descriptor.fields:
            rules = behaviours(field)
            if use is not Use.ANSWER and (field.name in without or rules & {_OUTPUT_ONLY, _IDENTIFIER}):
                continue
            if use is Use.PATCH and _IMMUTABLE in rules:
                continue
            schema = self.described(field, self.value(field, use))
            if use is Use.ANSWER and rules & {_OUTPUT_ONLY, _IDENTIFIER}:
                schema = {**schema, "readOnly": True}
            properties[field.json_name] = schema
            if _is_required(field, rules, use):
                required.append(field.json_name)
        text = self._comments.get(descriptor.full_name, "")
        made: Schema = {"type": "object", **({"description": text} if text else {}), "properties": properties}
        return made | ({"required": required} if required else {})

    def _example(self, name: str) -> Schema:
        return {"examples": [self._examples[name]]} if name in self._examples else {}


def behaviours(field: FieldDescriptor) -> set[int]:
    return set(field.GetOptions().Extensions[_BEHAVIOR])


def is_required(field: FieldDescriptor) -> bool:
    return _REQUIRED in behaviours(field)


def _is_required(field: FieldDescriptor, rules: set[int], use: Use) -> bool:
    if use is Use.ANSWER:
        # These are printed even when they hold their zero.
        return field.is_repeated or not field.has_presence
    return use is not Use.PATCH and _REQUIRED in rules


def _one_of(field: FieldDescriptor) -> str:
    """What a field of a oneof rules out."""
    oneof = field.containing_oneof
    if oneof is None or len(oneof.fields) < 2:
        return ""
    return "Only one of " + ", ".join(f"`{each.json_name}`" for each in oneof.fields) + " is set."


def _wrapped(descriptor: Any) -> FieldDescriptor | None:
    """The value of a google.protobuf.Int64Value and its like."""
    is_wrapper = descriptor.full_name.startswith("google.protobuf.") and descriptor.name.endswith("Value")
    return descriptor.fields_by_name["value"] if is_wrapper else None


def _short_name(descriptor: Any) -> str:
    """`rlhf.dataset.v1.Upload.State` → `UploadState`."""
    parent = descriptor.containing_type
    return (_short_name(parent) if parent is not None else "") + descriptor.name


def _sibling(value: Any) -> str:
    """The name under which a comment of an enum value was found."""
    return f"{value.type.full_name}.{value.name}"


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
