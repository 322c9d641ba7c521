"""Errors as RFC 9457 problem details, with everything a google.rpc.Status holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from services.mesh.errors import InvalidArgument, PlatformError, Unauthenticated

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


def problem(raised: Exception, request_id: str) -> Response:
    """The answer for any exception; one that is not ours says nothing of its inside."""
    error = raised.error if isinstance(raised, HttpError) else raised
    if not isinstance(error, PlatformError):
        error = PlatformError("INTERNAL", "internal error")
    status = raised.status if isinstance(raised, HttpError) else HTTP_STATUS.get(error.code, 500)
    violations = error.violations if isinstance(error, InvalidArgument) else ()
    document = {
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
    headers = raised.headers if isinstance(raised, HttpError) else {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers.setdefault("Retry-After", _RETRY_AFTER_SECONDS)
    body = json.dumps(document, ensure_ascii=False).encode(errors="replace")
    return Response(body, status, headers, media_type="application/problem+json")
