"""Parameters as a person sets them, drawn from the JSON Schema that the mesh gives for each algorithm and reward."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]
_MISSING = object()
REQUIRED = "required"


@dataclass(frozen=True)
class Parameter:
    """One line of a parameter table; `path` is what `--set` takes."""

    path: str
    type: str
    # As JSON; REQUIRED where the parameter must be given.
    default: str
    # Limits, in words; empty where there are none.
    range: str
    description: str


def parameters(schema: Schema) -> list[Parameter]:
    """Every parameter of an object's schema: first those that must be given, the nested ones last, else by name.

    The order in the schema is lost on the way: a protobuf Struct is a map.
    """
    found = _walk(schema, schema, "")
    return sorted(found, key=lambda item: (item.default != REQUIRED, item.path.count("."), item.path))


def collection(schema: Schema, name: str) -> dict[str, Any]:
    """The schemas of the known keys of the parameter `name`, by key; numbers as they were written."""
    kinds = schema.get("properties", {}).get(name, {}).get("anyOf", ())
    found = next((kind["properties"] for kind in kinds if "properties" in kind), {})
    return {key: _plainly(found[key]) for key in sorted(found)}


def _walk(root: Schema, schema: Schema, prefix: str) -> Iterator[Parameter]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        kinds = [_resolve(root, kind) for kind in field.get("anyOf", [field])]
        # One that takes other keys too is a collection, and has a command of its own.
        inner = next((kind for kind in kinds if kind.get("properties") and not kind.get("additionalProperties")), None)
        default = field.get("default", _MISSING)
        # An object that may be null is switched on and off as a whole; any other is set by its parts.
        if inner is None or len(kinds) > 1:
            yield Parameter(path, _types(kinds), _default(default, name in required), _range(kinds), _text(field))
        if inner is not None:
            yield from _walk(root, inner, f"{path}.")


def _resolve(root: Schema, schema: Schema) -> Schema:
    reference = schema.get("$ref")
    if reference is None:
        return schema
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def _types(kinds: list[Schema]) -> str:
    return " | ".join(_type(kind) for kind in kinds)


def _type(kind: Schema) -> str:
    if "enum" in kind:
        return " | ".join(str(value) for value in kind["enum"])
    if "const" in kind:
        return str(kind["const"])
    if kind.get("type") == "array":
        return f"list of {_type(kind.get('items', {}))}"
    return str(kind.get("type", "any"))


def _default(default: object, required: bool) -> str:
    if default is _MISSING:
        return REQUIRED if required else ""
    # Values that came through a protobuf Struct are doubles: 64.0 is 64.
    return json.dumps(_plain(default), ensure_ascii=False)


def _range(kinds: list[Schema]) -> str:
    bounds = []
    for kind in kinds:
        if "minimum" in kind and "maximum" in kind:
            bounds.append(f"{_plain(kind['minimum'])} to {_plain(kind['maximum'])}")
            continue
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
            if key in kind:
                bounds.append(f"{sign} {_plain(kind[key])}")
    return ", ".join(bounds)


def _text(field: Schema) -> str:
    return str(field.get("description", ""))


def _plainly(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plainly(one) for key, one in value.items()}
    return [_plainly(one) for one in value] if isinstance(value, list) else _plain(value)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value
