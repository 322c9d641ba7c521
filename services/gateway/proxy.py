"""gRPC passed through byte for byte: messages are never parsed, so a caller newer than the gateway loses nothing.

A method is passed on as a stream of messages each way, which on the wire is what all four shapes are, unless the
contract says that it takes one message and gives one, which costs less that way. Each side is read only as fast as the
other takes: nothing is gathered up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from services.gateway.upstreams import Upstream
from services.mesh.rpc.instrumentation import FORWARDED_FOR
from services.mesh.rpc.sending import finish, send
from services.mesh.telemetry import tracing

# Of one connection, not of the call; where it comes from, which is not the caller's to say; and the trace, which goes
# on from the gateway's own span.
_NOT_FORWARDED = ("user-agent", FORWARDED_FOR, *tracing.HEADERS)


class Proxy(grpc.GenericRpcHandler):
    """Every method of one gRPC service, also those that this contract does not know yet."""

    def __init__(self, service: ServiceDescriptor, upstream: Upstream) -> None:
        self._prefix = f"/{service.full_name}/"
        self._channel = upstream.channel
        # Without serializers gRPC takes and gives the bytes themselves.
        self._unary = {
            self._prefix + method.name: grpc.unary_unary_rpc_method_handler(
                _Unary(upstream.channel.unary_unary(self._prefix + method.name))
            )
            for method in service.methods
            if not method.client_streaming and not method.server_streaming
        }

    def register(self, server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((self,))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """None for another service: when nobody knows it, gRPC answers UNIMPLEMENTED."""
        method = handler_call_details.method
        if not method.startswith(self._prefix):
            return None
        if method in self._unary:
            return self._unary[method]
        invoke: Any = self._channel.stream_stream(method)

        async def forward(requests: Any, context: Any) -> AsyncIterator[bytes]:
            async for reply in _forward(invoke, requests, context):
                yield reply

        return grpc.stream_stream_rpc_method_handler(forward)


class _Unary:
    """One message there, one back."""

    def __init__(self, invoke: Any) -> None:
        self._invoke = invoke

    async def __call__(self, request: bytes, context: Any) -> bytes:
        # Cancelled with this coroutine when the caller cancels.
        call = self._invoke(request, timeout=context.time_remaining(), metadata=_metadata(context))
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            await _fail(context, error)
        await context.send_initial_metadata(tuple(await call.initial_metadata() or ()))
        context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))
        return reply


async def _fail(context: Any, error: grpc.aio.AioRpcError) -> NoReturn:
    """End the call as the service ended it, details in the trailers included."""
    await context.send_initial_metadata(tuple(error.initial_metadata() or ()))
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
    raise AssertionError("abort always raises")


async def _forward(invoke: Any, requests: Any, context: Any) -> AsyncIterator[bytes]:
    call = invoke(timeout=context.time_remaining(), metadata=_metadata(context))
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


def _metadata(context: Any) -> list[tuple[str, str | bytes]]:
    forwarded = [(key, value) for key, value in context.invocation_metadata() or () if key not in _NOT_FORWARDED]
    return [*forwarded, *tracing.headers(), (FORWARDED_FOR, context.peer())]
