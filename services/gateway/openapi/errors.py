"""`components.responses`: each way a request can fail, as services/gateway/http/problems.py says it."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from services.gateway.http.problems import HTTP_STATUS
from services.gateway.openapi.scalars import Schema

# Any request can meet these.
ANYWHERE = (400, 401, 403, 408, 413, 415, 429, 431, 500, 501, 503, 504)
_WHEN = {
    400: "The request is wrong (`INVALID_ARGUMENT`: `violations` names every field), or its resource is in the wrong"
    " state (`FAILED_PRECONDITION`).",
    401: "No token, or a wrong one.",
    403: "The `Host` or the `Origin` is not allowed.",
    404: "There is no such resource.",
    408: "The request did not arrive in time.",
    409: "It exists already, or somebody else was faster.",
    413: "The body is too large.",
    415: "Neither JSON nor an encoding that is known.",
    416: "There are no such bytes.",
    429: "A limit on size, count or disk was met.",
    431: "The headers are too large.",
    500: "Something went wrong inside, or stored bytes no longer match their hash.",
    501: "The service behind does not know the method: it is older.",
    503: "A service behind is down, or too many requests are open; try again after `Retry-After`.",
    504: "No answer within `X-Request-Timeout`.",
}
_OWN_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_TEXT = {"type": "string"}
HEADERS = {
    "X-Request-Id": "Names the request in the logs of every service: the one that was sent, or a new one.",
    "WWW-Authenticate": "`Bearer`.",
    "Retry-After": "Seconds.",
    "ETag": "Send it back in `If-None-Match` to be answered 304 while nothing has changed.",
    "Accept-Ranges": "`bytes`.",
    "Content-Range": "Which bytes these are, of how many.",
    "Content-Disposition": "The file's name.",
}

PROBLEM: Schema = {
    "type": "object",
    "description": "What went wrong (RFC 9457), with everything that a google.rpc.Status holds.",
    "properties": {
        "type": {"type": "string", "description": "`about:blank`: `title` says what `status` means."},
        "title": {"type": "string"},
        "status": {"type": "integer", "format": "int32", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "For people."},
        "code": {"type": "string", "enum": sorted(HTTP_STATUS), "description": "Of google.rpc.Code."},
        "reason": {"type": "string", "description": "A stable UPPER_SNAKE_CASE word to branch on."},
        "metadata": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The values that `detail` mentions.",
        },
        "violations": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/Violation"},
            "description": "Everything that is wrong with the request.",
        },
        "request_id": {"type": "string", "description": "As in `X-Request-Id`."},
    },
    "required": ["type", "title", "status", "detail", "code", "reason", "metadata", "violations", "request_id"],
    "examples": [
        {
            "type": "about:blank",
            "title": "Bad Request",
            "status": 400,
            "detail": "dataset.format: must be one of messages, preference, prompt",
            "code": "INVALID_ARGUMENT",
            "reason": "INVALID_FIELDS",
            "metadata": {},
            "violations": [{"field": "dataset.format", "description": "must be one of messages, preference, prompt"}],
            "request_id": "0d9f6f0e-3c2f-4f0e-9b1a-6f3f5c1d2e3a",
        }
    ],
}
VIOLATION: Schema = {
    "type": "object",
    "description": "One thing that is wrong with one field.",
    "properties": {
        "field": {"type": "string", "description": "Such as `training_job.params.learning_rate`."},
        "description": {"type": "string", "description": "What is wrong and what would be right."},
    },
    "required": ["field", "description"],
}


def components() -> dict[str, Schema]:
    return {_name(status): _response(status) for status in sorted(_WHEN)}


def headers() -> dict[str, Schema]:
    return {name: {"description": text, "schema": dict(_TEXT)} for name, text in HEADERS.items()}


def header_references(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def references(statuses: Iterable[int]) -> dict[str, Schema]:
    """For the `responses` of an operation."""
    return {str(status): {"$ref": f"#/components/responses/{_name(status)}"} for status in sorted(set(statuses))}


def _response(status: int) -> Schema:
    return {
        "description": _WHEN[status],
        "headers": header_references("X-Request-Id", *_OWN_HEADERS.get(status, ())),
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _name(status: int) -> str:
    """`Not Found` → `NotFound`."""
    return "".join(word.capitalize() for word in HTTPStatus(status).phrase.replace("-", " ").split())
