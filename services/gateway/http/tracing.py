"""What the gateway notes of every HTTP request and WebSocket: its span, its figures, its line in the access log.

Routes are known by their templates and never by paths as they were sent, which would be a figure each and may hold
what is nobody's business. A query is not written down at all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.http import headers
from services.gateway.http.request import REQUEST_ID
from services.mesh import identity
from services.mesh.telemetry import metrics, tracing

log = logging.getLogger("access")

# Who finds the route of a request writes its template here.
ROUTE = "rlhf.route"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Asked all the time; of interest only when they fail.
_PROBES = frozenset({"/healthz", "/readyz"})
_CLIENT_CLOSED = 499


class Observed:
    """ASGI: the outermost application. A stream's line comes at its end."""

    def __init__(self, app: ASGIApp, *, access_log: bool = True) -> None:
        self._app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope)
        try:
            await self._app(scope, exchange.receiving(receive), exchange.sending(send))
        finally:
            # The event loop writes what was sent first: the client need not wait for the notes.
            asyncio.get_running_loop().call_soon(self._note, exchange, time.perf_counter())

    def _note(self, exchange: _Exchange, ended: float) -> None:
        fields = exchange.end(ended)
        if self._access_log and not (fields["route"] in _PROBES and fields["status"] == 200):
            log.info("%s %s %s", fields["method"], fields["route"] or "-", fields["status"], extra=fields)


class _Exchange:
    """One request and its answer. The server runs each in a task of its own, so its span is current until that ends."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._method = scope.get("method", "GET")
        self._known = {"http.request.method": self._method if self._method in _METHODS else "_OTHER"}
        self._received = self._sent = self._status = 0
        parent = tracing.remote(headers.of(scope))
        self._span = tracing.start(self._method, tracing.SpanKind.SERVER, parent, self._known)
        tracing.enter(self._span)
        metrics.instruments().http_active.add(1, self._known)
        self._started = time.perf_counter()

    def receiving(self, receive: Receive) -> Receive:
        async def counted() -> Message:
            message = await receive()
            self._received += _size(message)
            return message

        return counted

    def sending(self, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self._status = message["status"]
            elif message["type"] == "websocket.accept":
                self._status = 101
            elif message["type"] == "websocket.close" and not self._status:
                self._status = 403  # closed before it was accepted, which is how a handshake is refused
            self._sent += _size(message)
            await send(message)

        return counted

    def end(self, ended: float) -> dict[str, Any]:
        """What the access log says. `ended` is by the performance counter."""
        seconds = ended - self._started
        route, status = self._scope.get(ROUTE, ""), self._status or _CLIENT_CLOSED
        figures = metrics.instruments()
        figures.http_active.add(-1, self._known)
        place = {**self._known, "http.route": route}
        figures.http_duration.record(seconds, {**place, "http.response.status_code": status})
        figures.http_received.add(self._received, place)
        figures.http_sent.add(self._sent, place)
        self._finish_span(route, status)
        client, principal = self._scope.get("client"), identity.current()
        return {
            "method": self._method[:20],
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 2),
            "received_bytes": self._received,
            "sent_bytes": self._sent,
            "principal": principal.name if principal else "",
            "client": client[0] if client else "",
            "request_id": self._scope.get(REQUEST_ID, ""),
        }

    def _finish_span(self, route: str, status: int) -> None:
        if self._span.is_recording():
            self._span.update_name(f"{self._method} {route}".strip())
            self._span.set_attribute("http.route", route)
            self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            tracing.fail(self._span, str(status))
        self._span.end()


def _size(message: Message) -> int:
    """Bytes of a body or of a WebSocket's message."""
    text = message.get("text")
    return len(message.get("body") or message.get("bytes") or b"") + (len(text.encode()) if text else 0)
