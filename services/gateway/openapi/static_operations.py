"""Operations that no annotation tells of: bytes in and out, tickets, probes, this document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from services.gateway.openapi import errors, parameters
from services.gateway.openapi.operations import WITH_TICKET, Operations, not_modified
from services.gateway.openapi.scalars import Schema
from services.gateway.openapi.schemas import Use
from services.gateway.transcoding.path_templates import PathTemplate
from services.gateway.transcoding.transcoder import file_downloads

Operation = tuple[str, str, Schema]

_BYTES = {"type": "string", "format": "binary"}
_JSON = "application/json"
TAGS = [
    {"name": "Tickets", "description": "For what a browser opens without headers."},
    {"name": "Gateway", "description": "About the gateway itself; no token is asked for."},
]
SCHEMAS: dict[str, Schema] = {
    "CreateTicketRequest": {
        "type": "object",
        "properties": {"path": {"type": "string", "description": "What will be opened, with its query: `/v1/…`."}},
        "required": ["path"],
        "examples": [{"path": "/v1/projects/default/trainingJobs/first:streamMetrics"}],
    },
    "Ticket": {
        "type": "object",
        "description": "Stands for the token in one path, for GET only, and for a minute.",
        "properties": {
            "ticket": {"type": "string", "description": "For `?ticket=` of the path."},
            "expireTime": {"type": "string", "format": "date-time"},
        },
        "required": ["ticket", "expireTime"],
    },
    "Health": {
        "type": "object",
        "properties": {"status": {"type": "string", "enum": ["ok"]}},
        "required": ["status"],
    },
    "Readiness": {
        "type": "object",
        "properties": {
            "status": {"type": "string", "enum": ["ready", "degraded", "not ready"]},
            "services": {
                "type": "object",
                "additionalProperties": {"type": "string", "enum": ["SERVING", "NOT_SERVING"]},
            },
            "degraded": {
                "type": "string",
                "description": "What services lack and go on without: NATS, room on the disk.",
            },
        },
        "required": ["status", "services"],
    },
}


def by_hand(operations: Operations, methods: dict[str, Any]) -> Iterator[Operation]:
    """`methods` are all RPCs by name."""
    yield from _uploads(operations, methods["WriteUpload"])
    yield _download(operations, methods["DownloadDataset"], "/v1/{name=projects/*/datasets/*/versions/*}:download", [])
    for method, template in file_downloads(methods.values()):
        path: Schema = {"name": "path", "in": "query", "required": True, "schema": {"type": "string"}}
        path["description"] = f"Of one of the {method.name.removeprefix('Download').lower()}'s `files`."
        yield _download(operations, method, template, [path], "application/octet-stream")
    yield _tickets()
    yield from _probes()


def _uploads(operations: Operations, method: Any) -> Iterator[Operation]:
    path, in_path = operations.path(PathTemplate.parse("/v1/{name=projects/*/datasets/*/uploads/*}:write"))
    query = parameters.query_parameters(operations.schemas, method.input_type, {"name", "chunk"})
    upload = operations.schemas.message(method.output_type, Use.ANSWER)
    for http_method, operation_id in (("put", "WriteUpload"), ("post", "WriteUploadByPost")):
        made = operations.head(method, operation_id)
        made["parameters"] = [*in_path, *query]
        made["requestBody"] = {
            "description": "The bytes of the file from `offsetBytes` on.",
            "content": {"application/octet-stream": {"schema": dict(_BYTES)}},
        }
        made["responses"] = {"200": _answer(upload, "Where the upload stands now.")}
        made["responses"] |= errors.references([*errors.ANYWHERE, 404, 409])
        yield path, http_method, made


def _download(
    operations: Operations, method: Any, template: str, query: list[Schema], kind: str = "application/x-ndjson"
) -> Operation:
    path, in_path = operations.path(PathTemplate.parse(template))
    made = operations.head(method)
    made["parameters"] = [*in_path, *query, *parameters.common("Range", "IfRange", "IfNoneMatch", "RequestTimeout")]
    made["security"] = WITH_TICKET
    names = ("X-Request-Id", "ETag", "Accept-Ranges", "Content-Disposition")
    content = {kind: {"schema": dict(_BYTES)}}
    made["responses"] = {
        "200": {"description": "All bytes.", "headers": errors.header_references(*names), "content": content},
        "206": {
            "description": "The bytes of `Range`.",
            "headers": errors.header_references(*names, "Content-Range"),
            "content": content,
        },
        "304": not_modified(),
    } | errors.references([*errors.ANYWHERE, 404, 416])
    return path, "get", made


def _tickets() -> Operation:
    text = "Makes a ticket: what a browser puts into the address where it cannot send the token."
    made: Schema = {"operationId": "CreateTicket", "tags": ["Tickets"], "summary": "Make a ticket", "description": text}
    made["requestBody"] = {
        "content": {_JSON: {"schema": {"$ref": "#/components/schemas/CreateTicketRequest"}}},
        "required": True,
    }
    made["responses"] = {"200": _answer({"$ref": "#/components/schemas/Ticket"}, "The ticket.")}
    made["responses"] |= errors.references(errors.ANYWHERE)
    return "/v1/tickets", "post", made


def _probes() -> Iterator[Operation]:
    health = _open("CheckHealth", "Whether the process answers", "#/components/schemas/Health")
    yield "/healthz", "get", health
    ready = _open("CheckReadiness", "Whether every service behind is serving", "#/components/schemas/Readiness")
    ready["responses"]["503"] = {
        "description": "A service is not serving, or too many requests are open.",
        "content": {**ready["responses"]["200"]["content"], **_problem()},
    }
    yield "/readyz", "get", ready
    document = _open("GetOpenApi", "This document", "")
    document["responses"]["200"]["content"] = {_JSON: {"schema": {"type": "object"}}}
    yield "/openapi.json", "get", document


def _open(operation_id: str, summary: str, schema: str) -> Schema:
    made: Schema = {"operationId": operation_id, "tags": ["Gateway"], "summary": summary, "security": []}
    made["responses"] = {"200": _answer({"$ref": schema}, "Yes.")} | errors.references([400, 403, 408, 431, 500, 503])
    return made


def _answer(schema: Schema, text: str) -> Schema:
    headers = errors.header_references("X-Request-Id")
    return {"description": text, "headers": headers, "content": {_JSON: {"schema": schema}}}


def _problem() -> Schema:
    return {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
