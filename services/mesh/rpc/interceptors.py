"""What every server wraps around every method: who calls, and one place where an exception becomes a status."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.mesh import identity
from services.mesh.errors import InvalidArgument, PlatformError, Violation
from services.mesh.telemetry import tracing

DOMAIN = "rlhf.dev"
DETAILS_KEY = "grpc-status-details-bin"
# Answered without a token: a probe has none, and says nothing but "serving".
_OPEN_METHODS = ("/grpc.health.v1.Health/",)
# A status travels in headers, of which a client by default accepts 8 KiB: the message percent-encoded (up to three
# bytes for one), the details, which hold message, values and violations, base64-encoded (four bytes for three).
_HEADER_MESSAGE_BYTES = 400
_DETAILS_BYTES = 4500
_MESSAGE_BYTES = 1500
_VALUE_BYTES = 300
log = logging.getLogger(__name__)

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behaviour: TypeAlias = Callable[[Any, Any], Any]
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"


def to_status(error: BaseException) -> status_pb2.Status:
    """Any exception as a google.rpc.Status.

    One that is not a PlatformError says nothing of its inside but the trace under which the log has it.
    """
    if not isinstance(error, PlatformError):
        trace = {"trace_id": found} if (found := tracing.trace_id()) else {}
        error = PlatformError("INTERNAL", "internal error", **trace)
    # The violations hold all that the message of an InvalidArgument says.
    message_bytes = _HEADER_MESSAGE_BYTES if isinstance(error, InvalidArgument) else _MESSAGE_BYTES
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=_cut(str(error), message_bytes))
    metadata = {key: _cut(value, _VALUE_BYTES) for key, value in error.metadata.items()}
    _add_detail(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if isinstance(error, InvalidArgument):
        _add_detail(status, _bad_request(error.violations, _DETAILS_BYTES - status.ByteSize()))
    return status


def _bad_request(violations: Sequence[Violation], limit_bytes: int) -> error_details_pb2.BadRequest:
    """Every violation; where they are too many for a header, those that fit and the number of the others."""
    found = error_details_pb2.BadRequest()
    for number, violation in enumerate(violations):
        field, description = _cut(violation.field, _VALUE_BYTES), _cut(violation.description, 2 * _VALUE_BYTES)
        one = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        if found.ByteSize() + one.ByteSize() + 80 > limit_bytes:  # 80: room for framing and the line below
            found.field_violations.add(description=f"and {len(violations) - number} more")
            break
        found.field_violations.append(one)
    return found


def _add_detail(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _cut(text: str, limit_bytes: int) -> str:
    """At most so many bytes of UTF-8; lone surrogates, which protobuf refuses, become `?`."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode(errors="ignore") + "…"


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """End the call with the status of `error`."""
    status = to_status(error)
    if not isinstance(error, PlatformError):
        log.exception("unhandled error", exc_info=error)
    code = grpc.StatusCode[code_pb2.Code.Name(code_pb2.Code.ValueType(status.code))]
    message = _cut(status.message, _HEADER_MESSAGE_BYTES)
    await context.abort(code, message, ((DETAILS_KEY, status.SerializeToString()),))
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
        behaviour = (self._many if handler.response_streaming else self._one)(getattr(handler, shape), method)
        wrap = getattr(grpc, f"{shape}_rpc_method_handler")
        return wrap(behaviour, self.reading(handler.request_deserializer), handler.response_serializer)

    def reading(self, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        """What makes a request of bytes."""
        return deserialize

    def taken(self, request: Any) -> Any:
        """The request, or the iterator of requests, as the method gets it. Raise to refuse it."""
        return request

    def _one(self, inner: _Behaviour, method: str) -> _Behaviour:
        async def one(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with self._around(request, context, method):
                return await inner(self.taken(request), context)

        return one

    def _many(self, inner: _Behaviour, method: str) -> _Behaviour:
        async def many(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with self._around(request, context, method):
                replies = inner(self.taken(request), context)
                if inspect.isawaitable(replies):  # it writes to the context, as the health service does
                    await replies
                    return
                async with contextlib.aclosing(replies):
                    async for reply in replies:
                        yield reply

        return many

    @contextlib.asynccontextmanager
    async def _around(
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any], method: str
    ) -> AsyncIterator[None]:
        try:
            await self.before(request, context, method)
            yield
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            await self.failed(context, error)
            raise


class Errors(Wrapping):
    """An exception becomes a status, for streams until their last message. So do bytes that are no message of the
    method's type, for which gRPC itself would answer UNKNOWN as for a bug of ours.
    """

    def reading(self, deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        if deserialize is None:
            return None

        def read(data: bytes) -> Any:
            try:
                return deserialize(data)
            except (DecodeError, ValueError) as error:
                return InvalidArgument.of("", f"the request cannot be read: {error}")

        return read

    def taken(self, request: Any) -> Any:
        if isinstance(request, InvalidArgument):
            raise request
        return _readable(request) if isinstance(request, AsyncIterable) else request

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
        identity.authorize(principal, method.rpartition("/")[2], resource_of(request))


async def _readable(requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, InvalidArgument):
            raise request
        yield request


def resource_of(request: Any) -> str:
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
