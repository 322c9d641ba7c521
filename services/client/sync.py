"""One channel under `Client`: the call shapes of the contract, over grpc. `aio` is the same over asyncio."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from services.client.endpoint import Endpoint
from services.mesh.errors import PlatformError
from services.mesh.rpc.client import OPTIONS, from_status
from services.mesh.rpc.interceptors import DETAILS_KEY
from services.mesh.telemetry import tracing

R = TypeVar("R", bound=Message)
T = TypeVar("T")


class Transport:
    """Raises what the server raised, as services.mesh.errors. May be used by several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._authorization = ("authorization", f"Bearer {endpoint.token}")
        if endpoint.certificates is None:
            self._channel = grpc.insecure_channel(endpoint.address, options=OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(endpoint.certificates.read_bytes())
            self._channel = grpc.secure_channel(endpoint.address, credentials, options=OPTIONS)

    def unary(self, method: str, request: Message, reply: type[R], timeout_seconds: float) -> R:
        invoke: Any = self._channel.unary_unary(method, _to_bytes, reply.FromString)
        try:
            return invoke(request, timeout=timeout_seconds, metadata=self._metadata())
        except grpc.RpcError as error:
            raise _map(error) from None

    def stream(
        self, method: str, request: Message, reply: type[R], timeout_seconds: float | None
    ) -> Generator[R, None]:
        """Cancels the call when it is closed."""
        invoke: Any = self._channel.unary_stream(method, _to_bytes, reply.FromString)
        pending = invoke(request, timeout=timeout_seconds, metadata=self._metadata())
        try:
            yield from pending
        except grpc.RpcError as error:
            raise _map(error) from None
        finally:
            pending.cancel()

    def write(self, method: str, requests: Iterator[Message], reply: type[R]) -> R:
        """A client stream. `requests` is read in a thread of gRPC's."""
        invoke: Any = self._channel.stream_unary(method, _to_bytes, reply.FromString)
        try:
            return invoke(requests, metadata=self._metadata())
        except grpc.RpcError as error:
            raise _map(error) from None

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """With the trace that the caller is in, where there is one."""
        return (self._authorization, *tracing.headers())

    def close(self) -> None:
        self._channel.close()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Here the thread is the caller's own."""
    return function(*arguments)


def _map(error: Any) -> PlatformError:
    details = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), None)
    return from_status(error.code().name, error.details() or error.code().name.lower(), details)


def _to_bytes(message: Message) -> bytes:
    return message.SerializeToString()
