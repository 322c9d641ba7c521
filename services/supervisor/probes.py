"""When a process counts as ready, and as alive. An exception means no."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2

Probe = Callable[[], Awaitable[bool]]


def grpc_serving(address: str) -> Probe:
    async def probe() -> bool:
        return await _health(address) == health_pb2.HealthCheckResponse.SERVING

    return probe


def grpc_answering(address: str) -> Probe:
    """Whatever it says of itself: one that waits for another is alive."""

    async def probe() -> bool:
        await _health(address)
        return True

    return probe


def grpc_has(addresses: Collection[str], what: str) -> Probe:
    """Whether no service says that `what`, which it uses, is of no use to it; one that is silent says nothing."""

    async def probe() -> bool:
        said = await asyncio.gather(*(_health(address, what) for address in addresses), return_exceptions=True)
        return health_pb2.HealthCheckResponse.NOT_SERVING not in said

    return probe


async def _health(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary(
            f"/{health.SERVICE_NAME}/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        reply = await check(health_pb2.HealthCheckRequest(service=service), timeout=1.0)
    return reply.status


def http_ok(address: str, path: str, *, tls: bool = False) -> Probe:
    async def probe() -> bool:
        return b" 200 " in await _status_line(address, path, tls)

    return probe


def http_answering(address: str, path: str, *, tls: bool = False) -> Probe:
    """Whatever the status: one that turns requests away, because it has too many, is alive."""

    async def probe() -> bool:
        return (await _status_line(address, path, tls)).startswith(b"HTTP/")

    return probe


async def _status_line(address: str, path: str, tls: bool) -> bytes:
    host, _, port = address.rpartition(":")
    # Whoever it is: it is told nothing, and believed nothing but that it answers.
    unverified = ssl._create_unverified_context() if tls else None  # noqa: S323
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=unverified)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        return await reader.readline()
    finally:
        writer.close()


def file_there(path: Path) -> Probe:
    async def probe() -> bool:
        return path.exists()  # noqa: ASYNC240 - one stat

    return probe


def file_touched(path: Path) -> Probe:
    """Whether the file was touched since the last time it was asked about, whatever the clock says: it may jump."""
    seen: int | None = None

    async def probe() -> bool:
        nonlocal seen
        before, seen = seen, path.stat().st_mtime_ns  # noqa: ASYNC240 - one stat
        return seen != before

    return probe


def every(*probes: Probe) -> Probe:
    async def probe() -> bool:
        return all([await each() for each in probes])

    return probe


def patient(probe: Probe, seconds: float, clock: Callable[[], float] = time.monotonic) -> Probe:
    """True once `probe` is, or has been asked in vain for `seconds`: what is missing is awaited, not insisted on."""
    begun: float | None = None

    async def asked() -> bool:
        nonlocal begun
        begun = clock() if begun is None else begun
        given_up = clock() - begun > seconds
        try:
            return await probe() or given_up
        except Exception:
            return given_up

    return asked
