"""When a process counts as ready. Each probe is asked again until it says yes; an exception means no."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2

Probe = Callable[[], Awaitable[bool]]


def grpc_serving(address: str) -> Probe:
    async def probe() -> bool:
        async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            check = channel.unary_unary(
                f"/{health.SERVICE_NAME}/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            reply = await check(health_pb2.HealthCheckRequest(), timeout=1.0)
        return reply.status == health_pb2.HealthCheckResponse.SERVING

    return probe


def http_ok(address: str, path: str) -> Probe:
    host, _, port = address.rpartition(":")

    async def probe() -> bool:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in await reader.readline()
        finally:
            writer.close()

    return probe


def file_there(path: Path) -> Probe:
    async def probe() -> bool:
        return path.exists()  # noqa: ASYNC240 - one stat

    return probe


def every(*probes: Probe) -> Probe:
    async def probe() -> bool:
        return all([await each() for each in probes])

    return probe
