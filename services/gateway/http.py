"""The HTTP side: a route for every unary RPC with a google.api.http annotation, probes, and the server that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import uvicorn
from google.protobuf import message_factory
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.calls import Call, Endpoint
from services.gateway.guard import Guard
from services.gateway.problems import HttpError
from services.gateway.settings import GatewaySettings
from services.gateway.transfer import transfer_routes
from services.gateway.upstreams import Upstream, Upstreams
from services.mesh.errors import InvalidArgument, NotFound, Unimplemented
from services.mesh.path_templates import NoRoute, PathTemplate, Router
from services.mesh.transcoding import Route, routes

_STOP_SECONDS = 5
_MAX_HEADER_BYTES = 32 * 1024
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 1024


class UnaryEndpoint:
    """One binding of one unary RPC."""

    def __init__(self, route: Route, upstream: Upstream) -> None:
        reply: Any = message_factory.GetMessageClass(route.method.output_type)
        self._route = route
        self._upstream = upstream
        self._invoke: Any = upstream.channel.unary_unary(
            route.rpc_path, request_serializer=_serialize, response_deserializer=reply.FromString
        )

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        request = self._route.request(captured, call.query, await call.json_body())
        pending = self._invoke(request, timeout=call.timeout_seconds, metadata=call.metadata())
        reply = await call.unary(self._upstream, pending)
        return Response(self._route.answer(reply), media_type="application/json")


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()


class Api:
    """ASGI: finds the route of a request and runs it. Errors travel on to the guard."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self._router: Router[Endpoint] = Router()
        self._add("GET", "/healthz", self._health)
        self._add("GET", "/readyz", self._ready)
        for upstream in upstreams.all:
            for route in _unary_routes(upstream):
                self._router.add(route.http_method, route.template, UnaryEndpoint(route, upstream))
            for http_method, template, endpoint in transfer_routes(upstream):
                self._add(http_method, template, endpoint)

    def _add(self, http_method: str, template: str, endpoint: Endpoint) -> None:
        self._router.add(http_method, PathTemplate.parse(template), endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # An answer to HEAD is that to GET; the server leaves the body out.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        try:
            found = self._router.find(method, path)
        except NoRoute as error:
            raise _no_route(method, path, error.allowed) from None
        try:
            captured = found.capture()
        except ValueError as error:
            raise InvalidArgument.of("path", f"is not percent-encoded UTF-8: {error}") from None
        response = await found.value(Call(Request(scope, receive)), captured)
        await response(scope, receive, send)

    async def _health(self, call: Call, captured: dict[str, str]) -> Response:
        """The process answers."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def _ready(self, call: Call, captured: dict[str, str]) -> Response:
        """Every service behind is serving, or which is not."""
        states = {upstream.name: "SERVING" if upstream.serving else "NOT_SERVING" for upstream in self._upstreams.all}
        ready = all(upstream.serving for upstream in self._upstreams.all)
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps({"status": "ready" if ready else "not ready", "services": states})
        return Response(body, status, media_type="application/json")


def _unary_routes(upstream: Upstream) -> Iterator[Route]:
    for descriptor in upstream.descriptors:
        for route in routes(descriptor):
            if not route.method.client_streaming and not route.method.server_streaming:
                yield route


def _no_route(method: str, path: str, allowed: frozenset[str]) -> Exception:
    if not allowed:
        return NotFound("ROUTE_NOT_FOUND", f"there is nothing at {path[:200]}", path=path[:200])
    names = sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))
    error = Unimplemented("METHOD_NOT_ALLOWED", f"{method} is not for {path[:200]}; it takes {', '.join(names)}")
    return HttpError(HTTPStatus.METHOD_NOT_ALLOWED, error, {"Allow": ", ".join(names)})


def http_app(settings: GatewaySettings, upstreams: Upstreams, token: str) -> ASGIApp:
    return Guard(Api(upstreams), settings, token)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has its own handlers."""
        yield


class HttpListener:
    """Entered, it listens; `port` is then the one it listens on."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._listen = settings.http_listen
        certificate, key = settings.mesh.tls_certificate_file, settings.mesh.tls_key_file
        config = uvicorn.Config(
            app,
            # In Python: the one that limits the size of headers.
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
            backlog=_BACKLOG,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def __aenter__(self) -> HttpListener:
        host, _, port = self._listen.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_BACKLOG)
        self.port = listening.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the HTTP server did not start")
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
