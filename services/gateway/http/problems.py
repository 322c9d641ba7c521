"""Errors as RFC 9457 problem details, with everything a google.rpc.Status holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from services.mesh.errors import InvalidArgument, PlatformError, Unauthenticated
from services.mesh.telemetry import tracing

# As google/rpc/code.proto says.
HTTP_STATUS: Mapping[str, int] = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
_RETRY_AFTER_SECONDS = "1"


class HttpError(Exception):
    """An error that HTTP has a more exact status for than its google.rpc.Code."""

    def __init__(self, status: int, error: PlatformError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error
        self.headers = dict(headers or {})


def of(raised: Exception) -> HttpError:
    """Any exception as what HTTP says of it.

    One that is not ours says nothing of its inside but the trace under which the log has it.
    """
    if isinstance(raised, HttpError):
        return raised
    if isinstance(raised, PlatformError):
        return HttpError(HTTP_STATUS.get(raised.code, 500), raised)
    trace = {"trace_id": found} if (found := tracing.trace_id()) else {}
    return HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, PlatformError("INTERNAL", "internal error", **trace))


def document(raised: Exception, request_id: str) -> dict[str, Any]:
    """The problem details of any exception."""
    found = of(raised)
    status, error = found.status, found.error
    violations = error.violations if isinstance(error, InvalidArgument) else ()
    return {
        "type": "about:blank",
        "title": "Client Closed Request" if status == 499 else HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code,
        "reason": error.reason,
        "metadata": error.metadata,
        "violations": [{"field": v.field, "description": v.description} for v in violations],
        "request_id": request_id,
    }


def to_json(content: Any) -> bytes:
    """Lone surrogates, which a foreign message may hold, become `?`."""
    return json.dumps(content, ensure_ascii=False).encode(errors="replace")


def problem(raised: Exception, request_id: str) -> Response:
    """The answer for any exception."""
    found = of(raised)
    if isinstance(found.error, Unauthenticated):
        found.headers["WWW-Authenticate"] = "Bearer"
    if found.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        found.headers.setdefault("Retry-After", _RETRY_AFTER_SECONDS)
    body = to_json(document(raised, request_id))
    return Response(body, found.status, found.headers, media_type="application/problem+json")
