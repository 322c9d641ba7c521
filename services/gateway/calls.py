"""One HTTP request on its way to a service: deadline, metadata, body, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import grpc
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from services.gateway.problems import HttpError
from services.gateway.upstreams import Upstream
from services.mesh.errors import Cancelled, DeadlineExceeded, InvalidArgument, ResourceExhausted
from services.mesh.transcoding import Query, parse_query

MAX_BODY_BYTES = 4 * 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 3600.0
# How long an upload or a download may stand still.
IDLE_SECONDS = 60.0
REQUEST_ID = "rlhf.request_id"

_FORWARDED = ("authorization", "traceparent", "tracestate")
_ASCII = re.compile(r"[\x20-\x7e]+")
_SECONDS = re.compile(r"([0-9]{1,8}(?:\.[0-9]{1,9})?)s?")
_GRPC_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Call:
    """`timeout_seconds` is what the caller gives the whole call."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.headers = request.headers
        self.timeout_seconds = _timeout(self.headers.get("x-request-timeout"), self.headers.get("grpc-timeout"))

    @property
    def query(self) -> Query:
        return parse_query(self.request.scope["query_string"].decode("latin-1"))

    def metadata(self) -> list[tuple[str, str]]:
        """What goes on to the service."""
        forwarded = [(key, value) for key in _FORWARDED if _ASCII.fullmatch(value := self.headers.get(key, ""))]
        return [*forwarded, ("x-request-id", self.request.scope[REQUEST_ID])]

    async def json_body(self) -> bytes:
        """The body, in memory. Raises HttpError 413 over the limit, 415 when it is not JSON."""
        self.refuse_encoding()
        if int(self.headers.get("content-length") or 0) > MAX_BODY_BYTES:
            raise _too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout_seconds):
                async for chunk in self.chunks():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_large()
        except TimeoutError:
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "the body did not arrive in time") from None
        kind, _, parameters = self.headers.get("content-type", "").lower().partition(";")
        charset = parameters.partition("charset=")[2].strip(' "')
        if body and (kind.strip() != "application/json" or charset not in ("", "utf-8", "utf8")):
            raise _unsupported("send JSON as `Content-Type: application/json`")
        return bytes(body)

    def refuse_encoding(self) -> None:
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise _unsupported("send the body without Content-Encoding")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Cancelled when the client vanishes."""
        try:
            async for chunk in self.request.stream():
                if chunk:
                    yield chunk
        except ClientDisconnect:
            raise Cancelled("CLIENT_GONE", "the client closed the connection") from None

    async def unary(self, upstream: Upstream, pending: Any) -> Any:
        """The reply to a call whose request has been sent; the call is cancelled when the client goes away.

        Raises the service's PlatformError. The request body must have been read.
        """
        gone = asyncio.create_task(self._gone())
        gone.add_done_callback(lambda _: pending.cancel())
        try:
            return await pending
        except grpc.aio.AioRpcError as error:
            raise upstream.error(error) from None
        except asyncio.CancelledError:
            if gone.done() and not gone.cancelled():
                raise Cancelled("CLIENT_GONE", "the client closed the connection") from None
            raise
        finally:
            gone.cancel()

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


# What a route leads to: the call and the decoded variables of its path template → the answer.
Endpoint = Callable[[Call, dict[str, str]], Awaitable[Response]]


def _too_large() -> HttpError:
    message = f"the body is larger than {MAX_BODY_BYTES} bytes"
    error = ResourceExhausted("BODY_TOO_LARGE", message, limit_bytes=MAX_BODY_BYTES)
    return HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error)


def _unsupported(how: str) -> HttpError:
    error = InvalidArgument.of("Content-Type" if "Type" in how else "Content-Encoding", how)
    error.reason = "UNSUPPORTED_MEDIA_TYPE"
    return HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error)


def _timeout(seconds: str | None, grpc_timeout: str | None) -> float:
    """`X-Request-Timeout: 2.5` in seconds, or gRPC's own header. Raises InvalidArgument."""
    value = DEFAULT_TIMEOUT_SECONDS
    if seconds is not None:
        found = _SECONDS.fullmatch(seconds.strip())
        value = float(found[1]) if found else 0.0
    elif grpc_timeout is not None:
        found = _GRPC_TIMEOUT.fullmatch(grpc_timeout.strip())
        value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if value <= 0:
        name = "X-Request-Timeout" if seconds is not None else "grpc-timeout"
        raise InvalidArgument.of(name, "must be a number of seconds above 0" if seconds is not None else "such as 500m")
    return min(value, MAX_TIMEOUT_SECONDS)
