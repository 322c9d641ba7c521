"""The only wiring of the gateway."""

from __future__ import annotations

import asyncio

from services.gateway.http.app import HttpListener, http_app
from services.gateway.proxy import Proxy
from services.gateway.settings import GatewaySettings
from services.gateway.streams.server_stream import OpenStreams
from services.gateway.upstreams import Upstreams
from services.mesh import identity
from services.mesh.rpc.instrumentation import Observed
from services.mesh.rpc.server import Server

_MIRROR_SECONDS = 0.25


class Gateway(Server):
    """`port` is that of gRPC, `http_port` that of HTTP; both are known after `start`."""

    def __init__(self, settings: GatewaySettings) -> None:
        observed = Observed(carries_out=False, access_log=settings.access_log)
        super().__init__("gateway", settings.mesh, observed, also=(settings.local_listen,))
        token = identity.read_token(settings.mesh.token_file)
        upstreams = Upstreams(settings.targets, settings.tls_root_certificates_file)
        self._by_service = {d.full_name: upstream for upstream in upstreams.all for d in upstream.descriptors}
        self.streams = OpenStreams(settings.max_streams)
        self._listener = HttpListener(http_app(settings, upstreams, self.streams, token), settings, self.streams)
        for upstream in upstreams.all:
            for descriptor in upstream.descriptors:
                self.serve(descriptor.full_name, Proxy(descriptor, upstream).register)
        self.add(upstreams)
        self.add(self._listener)
        self.add_routine("mirror health", self._mirror_health)

    @property
    def http_port(self) -> int:
        return self._listener.port

    async def _mirror_health(self) -> None:
        """The health of a service, asked here, is that of the service behind; that of `""` is the gateway's own."""
        while True:
            for service, upstream in self._by_service.items():
                await self.set_serving(service, upstream.serving)
            await asyncio.sleep(_MIRROR_SECONDS)


def build(settings: GatewaySettings) -> Gateway:
    """To be called in the event loop that it will run in. Raises Unauthenticated when there is no token to read."""
    return Gateway(settings)
