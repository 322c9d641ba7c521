"""One channel under `AsyncClient`: the call shapes of the contract, over grpc.aio. `sync` is the same over threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from services.client.endpoint import Endpoint
from services.mesh.rpc import client
from services.mesh.rpc.sending import send_all
from services.mesh.telemetry import tracing

R = TypeVar("R", bound=Message)
T = TypeVar("T")


class AsyncTransport:
    """Raises what the server raised, as services.mesh.errors."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._authorization = ("authorization", f"Bearer {endpoint.token}")
        if endpoint.certificates is None:
            self._channel = grpc.aio.insecure_channel(endpoint.address, options=client.OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(endpoint.certificates.read_bytes())
            self._channel = grpc.aio.secure_channel(endpoint.address, credentials, options=client.OPTIONS)

    async def unary(self, method: str, request: Message, reply: type[R], timeout_seconds: float) -> R:
        invoke: Any = self._channel.unary_unary(method, _to_bytes, reply.FromString)
        return await client.call(invoke(request, timeout=timeout_seconds, metadata=self._metadata()))

    async def stream(
        self, method: str, request: Message, reply: type[R], timeout_seconds: float | None
    ) -> AsyncGenerator[R, None]:
        """Cancels the call when it is closed."""
        invoke: Any = self._channel.unary_stream(method, _to_bytes, reply.FromString)
        async for message in client.stream(invoke(request, timeout=timeout_seconds, metadata=self._metadata())):
            yield message

    async def write(self, method: str, requests: AsyncIterator[Message], reply: type[R]) -> R:
        """A client stream."""
        invoke: Any = self._channel.stream_unary(method, None, reply.FromString)
        pending = invoke(metadata=self._metadata())
        # Written by us: a call that writes for itself loses the status of a server that ends it early.
        sending = asyncio.create_task(send_all(pending, requests))
        try:
            return await client.call(pending)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """With the trace that the caller is in, where there is one."""
        return (self._authorization, *tracing.headers())

    async def close(self) -> None:
        await self._channel.close()


async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run what reads or writes files."""
    return await asyncio.to_thread(function, *arguments)


def _to_bytes(message: Message) -> bytes:
    return message.SerializeToString()
