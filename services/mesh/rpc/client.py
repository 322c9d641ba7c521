"""The calling side: a channel with token, deadline and quick reconnects, and a status mapped back to an exception."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.mesh import addresses
from services.mesh.errors import BY_CODE, InvalidArgument, PlatformError, Violation
from services.mesh.rpc.interceptors import DETAILS_KEY
from services.mesh.rpc.sending import send_all
from services.mesh.telemetry import tracing

T = TypeVar("T")

DEFAULT_DEADLINE_SECONDS = 30.0
# A call that may be repeated is tried again this long after each UNAVAILABLE: 3.1 s for a service to come back.
_BACKOFFS_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6)
# Besides reads and what has a request_id: the contract says that a second time returns what the first made.
_REPEATABLE = ("CreateUpload", "CommitUpload")
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


def connect(target: str, token: str, root_certificates: Path | None = None) -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:/path` whose calls carry the token and, when unary, a deadline.

    Unary calls that may be repeated are tried again while the service is away: reads, and whatever has a `request_id`,
    which is filled in where the caller left it empty. Raises FailedPrecondition for a socket that is not ours.
    """
    addresses.check_target(target)
    interceptors = [_UnaryDefaults(token), _StreamDefaults(token), _StreamUnaryDefaults(token), _BothDefaults(token)]
    if root_certificates is None or target.startswith(addresses.PREFIX):
        return grpc.aio.insecure_channel(target, options=OPTIONS, interceptors=interceptors)
    credentials = grpc.ssl_channel_credentials(root_certificates.read_bytes())
    return grpc.aio.secure_channel(target, credentials, options=OPTIONS, interceptors=interceptors)


def from_status(code: str, message: str, details: bytes | None) -> PlatformError:
    """The exception that a server raised. `code` is the canonical name, `details` the bytes of a google.rpc.Status."""
    status, info, bad_request = status_pb2.Status(), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    try:
        status.ParseFromString(details or b"")
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad_request)
    except DecodeError:
        pass  # something between us wrote it; code and message still stand
    message = status.message or message
    if code == "INVALID_ARGUMENT":
        violations = [Violation(v.field, v.description) for v in bad_request.field_violations]
        return InvalidArgument(violations or [Violation("", message)], info.reason or "INVALID_FIELDS")
    error = BY_CODE.get(code, PlatformError)(info.reason or code, message)
    error.metadata = dict(info.metadata)
    return error


def map_error(error: grpc.aio.AioRpcError) -> PlatformError:
    details = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), None)
    raw = details if isinstance(details, bytes) else None
    return from_status(error.code().name, error.details() or error.code().name.lower(), raw)


async def call(pending: Awaitable[T]) -> T:
    """Await a unary call; raises the PlatformError that the server raised."""
    try:
        return await pending
    except grpc.aio.AioRpcError as error:
        raise map_error(error) from None


async def stream(replies: Any) -> AsyncGenerator[Any, None]:
    """The replies of a server stream; raises the PlatformError that the server raised, and cancels when abandoned."""
    try:
        async for reply in replies:
            yield reply
    except grpc.aio.AioRpcError as error:
        raise map_error(error) from None
    finally:
        replies.cancel()


def is_transient(error: PlatformError) -> bool:
    """Whether the same call may succeed later without anybody changing anything."""
    return error.code in (code_pb2.Code.Name(code_pb2.UNAVAILABLE), code_pb2.Code.Name(code_pb2.DEADLINE_EXCEEDED))


class _Defaults:
    def __init__(self, token: str) -> None:
        self._authorization = f"Bearer {token}"

    def details(
        self, details: grpc.aio.ClientCallDetails, span: tracing.Span | None, deadline: float | None = None
    ) -> grpc.aio.ClientCallDetails:
        """`deadline` on the monotonic clock, in place of the caller's timeout; `span` is the call's, if it has one."""
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        for key, value in (("authorization", self._authorization), *tracing.headers(span)):
            if key not in metadata:
                metadata.add(key, value)
        timeout = details.timeout if deadline is None else max(0.0, deadline - time.monotonic())
        return grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryDefaults(_Defaults, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        request = _with_request_id(request)
        repeatable = is_repeatable(client_call_details.method, request)
        deadline = time.monotonic() + (client_call_details.timeout or DEFAULT_DEADLINE_SECONDS)
        with _spanned(client_call_details) as spanned:
            for backoff_seconds in _BACKOFFS_SECONDS if repeatable else ():
                call = await continuation(self.details(client_call_details, spanned.span, deadline), request)
                code = await _code(call)
                if code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + backoff_seconds > deadline:
                    return spanned.by(call)
                await asyncio.sleep(backoff_seconds)
            return spanned.by(await continuation(self.details(client_call_details, spanned.span, deadline), request))


class _StreamDefaults(_Defaults, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        with _spanned(client_call_details) as spanned:
            return spanned.by(await continuation(self.details(client_call_details, spanned.span), request))


class _StreamUnaryDefaults(_Defaults, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        # Written by us: a call that writes for itself loses the status of a server that ends it early.
        with _spanned(client_call_details) as spanned:
            call = spanned.by(await continuation(self.details(client_call_details, spanned.span), None))
        sending = asyncio.create_task(send_all(call, request_iterator))
        call.add_done_callback(lambda _: sending.cancel())
        return call


class _BothDefaults(_Defaults, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        with _spanned(client_call_details) as spanned:
            return spanned.by(await continuation(self.details(client_call_details, spanned.span), request_iterator))


class _Spanned:
    """A span that ends when the call does that it is about. None where this process records none."""

    def __init__(self, span: tracing.Span | None) -> None:
        self.span = span
        self._handed_over = False

    def by(self, call: T) -> T:
        if self.span is not None and self.span.is_recording():
            self._handed_over = True
            task = asyncio.create_task(self._until_done(call))
            _ending.add(task)
            task.add_done_callback(_ending.discard)
        return call

    async def _until_done(self, call: Any) -> None:
        assert self.span is not None
        code = (await call.code()).name
        self.span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            tracing.fail(self.span, code)
        self.span.end()

    def close(self) -> None:
        if self.span is not None and not self._handed_over:
            self.span.end()


# A task that nobody refers to may be collected before it is done.
_ending: set[asyncio.Task[None]] = set()


@contextlib.contextmanager
def _spanned(details: grpc.aio.ClientCallDetails) -> Iterator[_Spanned]:
    method = details.method.decode() if isinstance(details.method, bytes) else details.method
    attributes = {"rpc.system.name": "grpc", "rpc.method": method[1:]}
    span = tracing.start(method[1:], tracing.SpanKind.CLIENT, None, attributes) if tracing.is_recording() else None
    spanned = _Spanned(span)
    try:
        yield spanned
    finally:
        spanned.close()


async def _code(call: Any) -> grpc.StatusCode:
    try:
        return await call.code()
    except asyncio.CancelledError:
        call.cancel()
        raise


def _with_request_id(request: Any) -> Any:
    if not isinstance(request, Message) or getattr(request, "request_id", None) != "":
        return request
    filled = type(request)()
    filled.CopyFrom(request)
    setattr(filled, "request_id", str(uuid.uuid4()))  # noqa: B010 - the type has the field, as was just seen
    return filled


def is_repeatable(method: str | bytes, request: Any) -> bool:
    """Whether a second time does no harm when the first was carried out and only its answer was lost."""
    name = (method.decode() if isinstance(method, bytes) else method).rpartition("/")[2]
    return name.startswith(("Get", "List")) or name in _REPEATABLE or bool(getattr(request, "request_id", ""))
