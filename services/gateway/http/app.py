"""The HTTP side: a route for every RPC with a google.api.http annotation, probes, and the server that runs it."""

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

from services.gateway.http import compression, etags
from services.gateway.http.http1_protocol import Connection
from services.gateway.http.problems import HttpError
from services.gateway.http.request import Call, Endpoint, Incoming
from services.gateway.http.static_files import page_routes
from services.gateway.http.tracing import ROUTE, Observed
from services.gateway.http.transfer import transfer_routes
from services.gateway.openapi import serving as openapi
from services.gateway.security import tickets
from services.gateway.security.cors import Cors
from services.gateway.security.guard import Guard
from services.gateway.security.tickets import Tickets
from services.gateway.settings import GatewaySettings
from services.gateway.streams.endpoint import StreamEndpoint, stream_routes
from services.gateway.streams.server_stream import OpenStreams
from services.gateway.streams.websocket import MAX_MESSAGE_BYTES, PING_SECONDS
from services.gateway.streams.websocket_protocol import WebSocketConnection
from services.gateway.transcoding.path_templates import NoRoute, PathTemplate, Router
from services.gateway.transcoding.transcoder import Route, routes
from services.gateway.upstreams import Upstream, Upstreams
from services.mesh.errors import InvalidArgument, NotFound, Unimplemented
from services.mesh.settings import DISK, NATS

_STOP_SECONDS = 5
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 1024
# What /readyz says of what services lack, by the name that their health has for it.
_LACKING = {
    NATS: "NATS takes no events: those of {services} wait, everything else goes on",
    DISK: "the disk of {services} is nearly full: delete what is no longer needed, or give it more room",
}


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
        body = self._route.answer(reply)
        if self._route.http_method != "GET":
            return Response(body, media_type="application/json")
        headers = {"ETag": etags.of(reply, body)}
        if etags.is_known(call.headers.get("if-none-match"), headers["ETag"]):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(body, headers=headers, media_type="application/json")


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()


class Api:
    """ASGI: finds the route of a request and runs it. Errors travel on to the guard."""

    def __init__(self, settings: GatewaySettings, upstreams: Upstreams, streams: OpenStreams, issued: Tickets) -> None:
        self._upstreams = upstreams
        self._router: Router[Endpoint] = Router()
        self._add("GET", "/healthz", self._health)
        self._add("GET", "/readyz", self._ready)
        self._add("POST", tickets.PATH, tickets.TicketEndpoint(issued))
        self._add("GET", openapi.PATH, openapi.OpenApiEndpoint())
        for page_template, page in page_routes():
            self._router.add("GET", page_template, page)
        for upstream in upstreams.all:
            for route in _unary_routes(upstream):
                self._router.add(route.http_method, route.template, UnaryEndpoint(route, upstream))
            for route, stream in stream_routes(upstream, streams, settings):
                self._router.add(route.http_method, route.template, stream)
            for http_method, template, endpoint in transfer_routes(upstream):
                self._add(http_method, template, endpoint)

    def _add(self, http_method: str, template: str, endpoint: Endpoint) -> None:
        self._router.add(http_method, PathTemplate.parse(template), endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # An answer to HEAD is that to GET; the server leaves the body out.
        method = scope.get("method", "GET")
        method = "GET" if method == "HEAD" else method
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        try:
            found = self._router.find(method, path)
        except NoRoute as error:
            raise _no_route(method, path, error.allowed) from None
        scope[ROUTE] = found.template.text
        try:
            captured = found.capture()
        except ValueError as error:
            raise InvalidArgument.of("path", f"is not percent-encoded UTF-8: {error}") from None
        if scope["type"] == "websocket":
            await _stream_of(found.value).websocket(Incoming(scope), captured)(scope, receive, send)
            return
        call = Call(Request(scope, receive))
        response = await found.value(call, captured)
        if type(response) is Response:
            await compression.pack(response, call.headers.get("accept-encoding", ""))
        await response(scope, receive, send)

    async def _health(self, call: Call, captured: dict[str, str]) -> Response:
        """The process answers."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def _ready(self, call: Call, captured: dict[str, str]) -> Response:
        """Every service behind is serving, or which is not; `degraded` where one says what it lacks."""
        states = {upstream.name: "SERVING" if upstream.serving else "NOT_SERVING" for upstream in self._upstreams.all}
        ready = all(upstream.serving for upstream in self._upstreams.all)
        # One that stops says of everything that it does not serve it.
        serving = [upstream for upstream in self._upstreams.all if upstream.serving]
        lacking = [
            meaning.format(services=", ".join(names))
            for name, meaning in _LACKING.items()
            if (names := [upstream.name for upstream in serving if name in upstream.lacking])
        ]
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        body = {"status": ("degraded" if lacking else "ready") if ready else "not ready", "services": states}
        if lacking:
            body["degraded"] = "; ".join(lacking)
        return Response(json.dumps(body), status, media_type="application/json")


def _unary_routes(upstream: Upstream) -> Iterator[Route]:
    for descriptor in upstream.descriptors:
        for route in routes(descriptor):
            if not route.method.client_streaming and not route.method.server_streaming:
                yield route


def _stream_of(endpoint: Endpoint) -> StreamEndpoint:
    if not isinstance(endpoint, StreamEndpoint):
        raise InvalidArgument.of("Upgrade", "there is no stream here; ask without a WebSocket")
    return endpoint


def _no_route(method: str, path: str, allowed: frozenset[str]) -> Exception:
    if not allowed:
        return NotFound("ROUTE_NOT_FOUND", f"there is nothing at {path[:200]}", path=path[:200])
    names = sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))
    error = Unimplemented("METHOD_NOT_ALLOWED", f"{method} is not for {path[:200]}; it takes {', '.join(names)}")
    return HttpError(HTTPStatus.METHOD_NOT_ALLOWED, error, {"Allow": ", ".join(names)})


def http_app(settings: GatewaySettings, upstreams: Upstreams, streams: OpenStreams, token: str) -> ASGIApp:
    issued = Tickets(token)
    app = Guard(Api(settings, upstreams, streams, issued), settings, token, streams, issued)
    allowing = Cors(app, settings.cors_origins) if settings.cors_origins else app
    return Observed(allowing, access_log=settings.access_log)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has its own handlers."""
        yield


class HttpListener:
    """Entered, it listens; `port` is then the one it listens on. Left, it ends the streams first."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, streams: OpenStreams) -> None:
        self._listen = settings.http_listen
        self._streams = streams
        certificate, key = settings.mesh.tls_certificate_file, settings.mesh.tls_key_file
        config = uvicorn.Config(
            app,
            http=Connection,
            ws=WebSocketConnection,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
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
        await self._streams.stop()
        self._server.should_exit = True
        if self._task is not None:
            await self._task
