"""The calling side: a channel with token, deadline and quick reconnects, and a status mapped back to an exception."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

from services.mesh.errors import BY_CODE, InvalidArgument, PlatformError, Violation
from services.mesh.interceptors import DETAILS_KEY

T = TypeVar("T")

DEFAULT_DEADLINE_SECONDS = 30.0
# Reads and idempotent calls are tried again by gRPC itself while a service restarts.
_SERVICE_CONFIG = """{"methodConfig": [{"name": [{}], "retryPolicy": {
  "maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
  "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


def connect(target: str, token: str, root_certificates: Path | None = None) -> grpc.aio.Channel:
    """A channel to `host:port` whose calls carry the token and, when unary, a deadline."""
    interceptors = [_UnaryDefaults(token), _StreamDefaults(token), _StreamUnaryDefaults(token)]
    if root_certificates is None:
        return grpc.aio.insecure_channel(target, options=OPTIONS, interceptors=interceptors)
    credentials = grpc.ssl_channel_credentials(root_certificates.read_bytes())
    return grpc.aio.secure_channel(target, credentials, options=OPTIONS, interceptors=interceptors)


def from_status(code: str, message: str, details: bytes | None) -> PlatformError:
    """The exception that a server raised. `code` is the canonical name, `details` the bytes of a google.rpc.Status."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    if details:
        status = status_pb2.Status.FromString(details)
        message = status.message or message
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad_request)
    if code == "INVALID_ARGUMENT" and bad_request.field_violations:
        violations = (Violation(v.field, v.description) for v in bad_request.field_violations)
        return InvalidArgument(violations, info.reason or "INVALID_FIELDS")
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


async def stream(replies: Any) -> AsyncIterator[Any]:
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

    def details(self, details: grpc.aio.ClientCallDetails, deadline: float | None) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if "authorization" not in metadata:
            metadata.add("authorization", self._authorization)
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout or deadline, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryDefaults(_Defaults, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.details(client_call_details, DEFAULT_DEADLINE_SECONDS), request)


class _StreamDefaults(_Defaults, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.details(client_call_details, None), request)


class _StreamUnaryDefaults(_Defaults, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.details(client_call_details, None), request_iterator)
