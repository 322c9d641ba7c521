"""What a route of a server-streaming RPC leads to: an answer over HTTP or over a WebSocket."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.responses import Response

from services.gateway.http.request import Call, Incoming
from services.gateway.settings import GatewaySettings
from services.gateway.streams.http_body import StreamAnswer
from services.gateway.streams.server_stream import OpenStreams, StreamCaller
from services.gateway.streams.websocket import WebSocketAnswer
from services.gateway.streams.websocket_commands import commands_of
from services.gateway.transcoding.transcoder import Route, routes
from services.gateway.upstreams import Upstream


class StreamEndpoint:
    """One binding of one server-streaming RPC."""

    def __init__(self, route: Route, upstream: Upstream, streams: OpenStreams, slow_seconds: float) -> None:
        self._caller = StreamCaller(route, upstream, streams)
        self._commands = commands_of(route, upstream)
        self._slow_seconds = slow_seconds

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        request = self._caller.request(call, captured)
        return StreamAnswer(self._caller, call, request, self._slow_seconds)

    def websocket(self, incoming: Incoming, captured: dict[str, str]) -> WebSocketAnswer:
        return WebSocketAnswer(self._caller, self._commands, incoming, captured, self._slow_seconds)


def stream_routes(
    upstream: Upstream, streams: OpenStreams, settings: GatewaySettings
) -> Iterator[tuple[Route, StreamEndpoint]]:
    """Every server-streaming RPC with an annotation."""
    for descriptor in upstream.descriptors:
        for route in routes(descriptor):
            if route.method.server_streaming and not route.method.client_streaming:
                yield route, StreamEndpoint(route, upstream, streams, settings.slow_reader_seconds)
