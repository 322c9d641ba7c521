"""The services behind the gateway: one channel each, and whether it is serving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.mesh import addresses, catalog
from services.mesh.errors import DeadlineExceeded, PlatformError, Unavailable
from services.mesh.rpc.client import map_error
from services.mesh.rpc.interceptors import DETAILS_KEY
from services.mesh.settings import DISK, NATS

_FOLLOW_AGAIN_SECONDS = 0.25
# No retry policy: only the caller knows whether its call may run twice.
_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


@dataclass
class Upstream:
    """One service. `descriptors` are the gRPC services of its contract."""

    name: str
    channel: grpc.aio.Channel
    descriptors: Sequence[ServiceDescriptor]
    serving: bool = False
    # What the service has said that it lacks and goes on without: NATS, or room on its disk.
    lacking: set[str] = field(default_factory=set)

    async def follow(self) -> None:
        """Keep `serving` true to what the service's own health says, for ever."""
        async for status in self._states(""):
            self.serving = status == health_pb2.HealthCheckResponse.SERVING

    async def follow_what_is_lacking(self, name: str) -> None:
        """The same for `name` in `lacking`."""
        async for status in self._states(name):
            if status == health_pb2.HealthCheckResponse.NOT_SERVING:
                self.lacking.add(name)
            else:
                self.lacking.discard(name)

    async def _states(self, name: str) -> AsyncIterator[int]:
        """What the service's health says of `name`, for ever; UNKNOWN while nobody answers."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        while True:
            try:
                async for reply in stub.Watch(health_pb2.HealthCheckRequest(service=name)):
                    yield reply.status
            except grpc.aio.AioRpcError:
                pass
            yield health_pb2.HealthCheckResponse.UNKNOWN
            await asyncio.sleep(_FOLLOW_AGAIN_SECONDS)

    def error(self, error: grpc.aio.AioRpcError) -> PlatformError:
        """What a call ended with. gRPC's own words about connections hold addresses: they are not passed on."""
        if not any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ()):
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                message = f"the {self.name} service cannot be reached"
                return Unavailable("SERVICE_UNREACHABLE", message, service=self.name)
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"the {self.name} service did not answer in time"
                return DeadlineExceeded("DEADLINE_EXCEEDED", message, service=self.name)
        return map_error(error)


class Upstreams:
    """Entered, it holds the channels open and follows each service's health."""

    def __init__(self, targets: Mapping[str, str], root_certificates: Path | None = None) -> None:
        self.all = [
            Upstream(name, _channel(target, root_certificates), catalog.descriptors(name))
            for name, target in targets.items()
        ]
        self._followers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Upstreams:
        routines = [upstream.follow() for upstream in self.all]
        routines += [upstream.follow_what_is_lacking(name) for upstream in self.all for name in (NATS, DISK)]
        self._followers = [asyncio.create_task(routine) for routine in routines]
        return self

    async def __aexit__(self, *_: object) -> None:
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        await asyncio.gather(*(upstream.channel.close() for upstream in self.all))


def _channel(target: str, root_certificates: Path | None) -> grpc.aio.Channel:
    """Raises FailedPrecondition for a socket that is not ours: callers' tokens go there."""
    addresses.check_target(target)
    if root_certificates is None or target.startswith(addresses.PREFIX):
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(root_certificates.read_bytes())
    return grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
