"""What every server wraps around every method: who calls, and one place where an exception becomes a status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.mesh import identity
from services.mesh.errors import InvalidArgument, PlatformError

DOMAIN = "rlhf.dev"
DETAILS_KEY = "grpc-status-details-bin"
# Answered without a token: a probe has none, and says nothing but "serving".
_OPEN_METHODS = ("/grpc.health.v1.Health/",)
log = logging.getLogger(__name__)

_Handler = grpc.RpcMethodHandler[Any, Any]
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]


def to_status(error: BaseException) -> status_pb2.Status:
    """Any exception as a google.rpc.Status; one that is not a PlatformError says nothing of its inside."""
    if not isinstance(error, PlatformError):
        error = PlatformError("INTERNAL", "internal error")
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if isinstance(error, InvalidArgument):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=str(error))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """End the call with the status of `error`."""
    status = to_status(error)
    if not isinstance(error, PlatformError):
        log.exception("unhandled error", exc_info=error)
    code = grpc.StatusCode[code_pb2.Code.Name(code_pb2.Code.ValueType(status.code))]
    # gRPC carries the message in a header: at most a few KiB. The details hold the rest.
    await context.abort(code, status.message[:2000], ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort always raises")


class Wrapping(grpc.aio.ServerInterceptor):
    """Base: two hooks around a method, whichever of the four call shapes it has."""

    async def before(self, request: Any, context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
        """Raise to refuse the call."""

    async def failed(self, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
        """What to do with an error; returning lets it travel on."""

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        asks, answers = (
            "stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming)
        )
        shape = f"{asks}_{answers}"
        inner = getattr(handler, shape)

        async def one(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                await self.before(request, context, method)
                return await inner(request, context)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:
                await self.failed(context, error)
                raise

        async def many(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                await self.before(request, context, method)
                async for reply in inner(request, context):
                    yield reply
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:
                await self.failed(context, error)
                raise

        wrap = getattr(grpc, f"{shape}_rpc_method_handler")
        behaviour = many if handler.response_streaming else one
        return wrap(behaviour, handler.request_deserializer, handler.response_serializer)


class Errors(Wrapping):
    """An exception becomes a status, for streams until their last message."""

    async def failed(self, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
        await abort(context, error)


class Identity(Wrapping):
    """Sets the principal of the call and asks whether it may."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def before(self, request: Any, context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
        if method.startswith(_OPEN_METHODS):
            return
        principal = identity.authenticate(context.invocation_metadata() or (), self._token)
        identity.become(principal)
        identity.authorize(principal, method.rpartition("/")[2], _resource(request))


def _resource(request: Any) -> str:
    """The resource that a request is about: its `name`, or its `parent`, or that of the resource inside it."""
    if not isinstance(request, Message):
        return ""  # a stream of requests names its resource in the first message; the use case checks it
    for field in ("name", "parent"):
        if value := getattr(request, field, ""):
            return value
    for descriptor, value in request.ListFields():
        if descriptor.message_type is not None and (name := getattr(value, "name", "")):
            return name
    return ""
