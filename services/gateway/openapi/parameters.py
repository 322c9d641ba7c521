"""Parameters of an operation: from the path template, from the fields that go into the query, and from headers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from services.gateway.openapi.scalars import Schema
from services.gateway.openapi.schemas import Schemas, Use, is_required
from services.gateway.transcoding.path_templates import PathTemplate, Variable, Wildcard
from services.mesh.rpc import protojson

# Of a message that holds itself.
_MAX_DEPTH = 4
_PATTERN_PAIR = re.compile(r"([A-Za-z][A-Za-z0-9-]*)/\{([a-z0-9_]+)\}")

COMMON: Mapping[str, Schema] = {
    "RequestTimeout": {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "Seconds that the whole call may take. Default 30.",
        "schema": {"type": "number", "minimum": 0.001, "maximum": 3600},
    },
    "RequestId": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Names the request in the logs of every service.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of an earlier answer.",
        "schema": {"type": "string"},
    },
    "IfRange": {
        "name": "If-Range",
        "in": "header",
        "description": "The `ETag` that `Range` is meant for; the whole is sent when it is another by now.",
        "schema": {"type": "string"},
    },
    "Range": {
        "name": "Range",
        "in": "header",
        "description": "One range of bytes, such as `bytes=1000-1999` or `bytes=-500`.",
        "schema": {"type": "string"},
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The `id` of the last event that arrived: the stream goes on after it. Where the request has an"
        " `after…` parameter it means the same.",
        "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"},
    },
}


def common(*names: str) -> list[Schema]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def wildcard_names(patterns: Collection[str]) -> dict[str, str]:
    """`projects/{project}/trainingJobs/{training_job}` → projects: project, trainingJobs: trainingJob."""
    return {plural: _camel(name) for pattern in patterns for plural, name in _PATTERN_PAIR.findall(pattern)}


def path_of(template: PathTemplate, names: Mapping[str, str]) -> tuple[str, list[Schema]]:
    """The template as OpenAPI writes it, one parameter for each wildcard, and those parameters."""
    parts: list[str] = []
    parameters: list[Schema] = []
    for index, segment in enumerate(template.segments):
        if isinstance(segment, str):
            parts.append(segment)
            continue
        variable = next((each for each in template.variables if _covers(each, index)), None)
        name = _wildcard_name(template, variable, index, names)
        parts.append(f"{{{name}}}")
        parameters.append(_path_parameter(name, variable, segment))
    verb = f":{template.verb}" if template.verb else ""
    return "/" + "/".join(parts) + verb, parameters


def _wildcard_name(template: PathTemplate, variable: Variable | None, index: int, names: Mapping[str, str]) -> str:
    """A variable of one wildcard after its field, others after the collection they stand behind."""
    if variable is None:
        return f"segment{index}"
    field = _camel(variable.field_path)
    wildcards = [each for each in template.segments[variable.start : variable.end] if isinstance(each, Wildcard)]
    alone = field if len(wildcards) == 1 else f"{field}{index}"
    return alone if variable.single else names.get(str(template.segments[index - 1]), alone)


def _path_parameter(name: str, variable: Variable | None, segment: str | Wildcard) -> Schema:
    schema: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
    text = f"Part of `{variable.field_path}`." if variable is not None else "Any."
    if segment is Wildcard.REST:
        text += " May hold slashes."
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


def query_parameters(schemas: Schemas, descriptor: Any, elsewhere: Collection[str]) -> list[Schema]:
    """Of the fields that are neither in the path nor in the body."""
    return list(_query(schemas, descriptor, set(elsewhere), "", "", 0))


def _query(
    schemas: Schemas, descriptor: Any, elsewhere: Collection[str], prefix: str, shown: str, depth: int
) -> Iterator[Schema]:
    for field in descriptor.fields:
        path, name = prefix + field.name, shown + field.json_name
        if path in elsewhere:
            continue
        kind = field.message_type
        if kind is None or (protojson.is_well_known(kind) and not field.is_repeated):
            yield _query_parameter(schemas, field, name, required=is_required(field) and not prefix)
        elif not field.is_repeated and depth < _MAX_DEPTH:
            yield from _query(schemas, kind, elsewhere, f"{path}.", f"{name}.", depth + 1)


def _query_parameter(schemas: Schemas, field: FieldDescriptor, name: str, *, required: bool) -> Schema:
    schema = schemas.value(field, Use.INPUT)
    if field.name == "page_size":
        schema = {**schema, "minimum": 0}
    text = schemas.described(field, {}).get("description")
    made: Schema = {"name": name, "in": "query", "schema": schema}
    if text:
        made["description"] = text
    if required:
        made["required"] = True
    if field.is_repeated:
        made |= {"style": "form", "explode": True}
    return made


def _covers(variable: Variable, index: int) -> bool:
    return variable.start <= index and (variable.end is None or index < variable.end)


def _camel(name: str) -> str:
    return re.sub(r"[_.]([a-z0-9])", lambda found: found[1].upper(), name)
