"""gRPC passed through byte for byte: messages are never parsed, so a caller newer than the gateway loses nothing.

Every call is passed on as a stream of messages each way, which on the wire is what all four shapes are. Each side is
read only as fast as the other takes: nothing is gathered up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from services.gateway.upstreams import Upstream
from services.gateway.writing import finish, send

# Of one connection, not of the call.
_NOT_FORWARDED = ("user-agent",)


class Proxy(grpc.GenericRpcHandler):
    """Every method of one gRPC service, `service_name` in full, also those that this contract does not know yet."""

    def __init__(self, service_name: str, upstream: Upstream) -> None:
        self._prefix = f"/{service_name}/"
        self._upstream = upstream

    def register(self, server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((self,))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """None for another service: when nobody knows it, gRPC answers UNIMPLEMENTED."""
        method = handler_call_details.method
        if not method.startswith(self._prefix):
            return None
        invoke: Any = self._upstream.channel.stream_stream(method)

        async def forward(requests: Any, context: Any) -> AsyncIterator[bytes]:
            async for reply in _forward(invoke, requests, context):
                yield reply

        # Without serializers gRPC hands over the bytes themselves.
        return grpc.stream_stream_rpc_method_handler(forward)


async def _forward(invoke: Any, requests: Any, context: Any) -> AsyncIterator[bytes]:
    metadata = [(key, value) for key, value in context.invocation_metadata() or () if key not in _NOT_FORWARDED]
    call = invoke(timeout=context.time_remaining(), metadata=metadata)
    # Runs when the caller cancels, too, wherever this generator stands then.
    context.add_done_callback(lambda _: call.cancel())
    pump = asyncio.create_task(_pump(requests, call))
    try:
        await context.send_initial_metadata(tuple(await call.initial_metadata() or ()))
        while (reply := await call.read()) is not grpc.aio.EOF:
            yield reply
    except grpc.aio.AioRpcError:
        pass  # its status is passed on below
    finally:
        pump.cancel()
    context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))
    context.set_code(await call.code())
    context.set_details(await call.details() or "")


async def _pump(requests: Any, call: Any) -> None:
    """Pass requests on until the caller is done or the service has answered."""
    async for request in requests:
        if not await send(call, request):
            return
    await finish(call)
