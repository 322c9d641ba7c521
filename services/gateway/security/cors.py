"""Cross-origin requests, off unless RLHF_GATEWAY_CORS_ORIGINS names origins.

Never with credentials: the token travels in a header that a page must set itself. Source: https://fetch.spec.whatwg.org.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# In the scope of a request whose origin is allowed.
ALLOWED = "rlhf.cors_allowed"

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_REQUEST_HEADERS = (
    "Authorization, Content-Type, Content-Encoding, If-None-Match, If-Range, Last-Event-ID, Range, Traceparent, "
    "Tracestate, X-Request-Id, X-Request-Timeout"
)
_ANSWER_HEADERS = "Content-Disposition, Content-Range, ETag, Retry-After, X-Request-Id"
_PREFLIGHT_SECONDS = "600"


class Cors:
    """ASGI, before everything else: a preflight carries no token."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        is_preflight = scope.get("method") == "OPTIONS" and "access-control-request-method" in headers
        if origin not in self._origins:
            await self._app(scope, receive, _with(send, {}))
        elif is_preflight:
            await self._preflight(origin)(scope, receive, send)
        else:
            scope[ALLOWED] = True
            allowed = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _ANSWER_HEADERS}
            await self._app(scope, receive, _with(send, allowed))

    def _preflight(self, origin: str) -> Response:
        headers = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _REQUEST_HEADERS,
            "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
            "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        }
        return Response(status_code=204, headers=headers)


def _with(send: Send, more: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            headers.add_vary_header("Origin")
            headers.update(more)
            message = {**message, "headers": headers.raw}
        await send(message)

    return sending
