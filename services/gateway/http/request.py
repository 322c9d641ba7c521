"""One HTTP request on its way to a service: deadline, metadata, body, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from services.gateway.http import compression, headers
from services.gateway.http.problems import HttpError
from services.gateway.transcoding.transcoder import Query, parse_query
from services.gateway.upstreams import Upstream
from services.mesh.errors import Cancelled, DeadlineExceeded, InvalidArgument, ResourceExhausted, Violation
from services.mesh.rpc.instrumentation import FORWARDED_FOR
from services.mesh.telemetry import tracing

MAX_BODY_BYTES = 4 * 1024 * 1024
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 3600.0
# Within which the body of a call is there, however long the call itself may take.
MAX_BODY_SECONDS = 60.0
# How long an upload or a download may stand still.
IDLE_SECONDS = 60.0
# Most calls are answered sooner, and a task that watches the client costs more than it could save them.
_UNWATCHED_SECONDS = 0.02
REQUEST_ID = "rlhf.request_id"

_FORWARDED = ("authorization",)
_ASCII = re.compile(r"[\x20-\x7e]+")
_SECONDS = re.compile(r"([0-9]{1,8}(?:\.[0-9]{1,9})?)s?")
_GRPC_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Incoming:
    """What an HTTP request and a WebSocket handshake have in common."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.headers = headers.of(scope)
        # What the caller gives the whole call; None when it does not say.
        self.given_seconds = _timeout(self.headers.get("x-request-timeout"), self.headers.get("grpc-timeout"))

    @property
    def request_id(self) -> str:
        return self.scope[REQUEST_ID]

    @property
    def query(self) -> Query:
        return parse_query(self.scope["query_string"].decode("latin-1"))

    def metadata(self) -> list[tuple[str, str]]:
        """What goes on to the service."""
        forwarded = [(key, value) for key in _FORWARDED if _ASCII.fullmatch(value := self.headers.get(key, ""))]
        host, _ = self.scope.get("client") or ("", 0)
        return [*forwarded, *tracing.headers(), (FORWARDED_FOR, host), ("x-request-id", self.request_id)]


class Call(Incoming):
    """An HTTP request."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.scope)
        self.request = request
        self.timeout_seconds = self.given_seconds or DEFAULT_TIMEOUT_SECONDS
        self._body_left = True

    async def json_body(self) -> bytes:
        """The body, in memory and unpacked. Raises HttpError 408 when it is late, 413 over the limit, 415 when it is
        neither JSON nor packed in a known way."""
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding not in ("identity", *compression.CODINGS):
            raise _unknown_encoding(f"must be one of {', '.join(compression.CODINGS)}, identity")
        if "content-length" not in self.headers and "transfer-encoding" not in self.headers:
            return b""
        if int(self.headers.get("content-length") or 0) > MAX_BODY_BYTES:
            raise _too_large()
        body = bytearray()
        seconds = min(self.timeout_seconds, MAX_BODY_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                async for chunk in self.chunks():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_large()
        except TimeoutError:
            error = DeadlineExceeded("BODY_LATE", f"the body did not arrive within {seconds:g} s")
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, error) from None
        kind, _, parameters = self.headers.get("content-type", "").lower().partition(";")
        charset = parameters.partition("charset=")[2].strip(' "')
        if body and (kind.strip() != "application/json" or charset not in ("", "utf-8", "utf8")):
            raise _unsupported("send JSON as `Content-Type: application/json`")
        return bytes(body) if coding == "identity" else await _unpacked(coding, bytes(body))

    def refuse_encoding(self) -> None:
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise _unknown_encoding("send the bytes of the file themselves", accepted="identity")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Cancelled when the client vanishes."""
        while (piece := await self.piece()) is not None:
            if piece:
                yield piece

    async def piece(self) -> bytes | None:
        """What comes next of the body, None at its end. Whoever gives up waiting may ask again. Raises Cancelled when
        the client vanishes."""
        if not self._body_left:
            return None
        message = await self.request.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("CLIENT_GONE", "the client closed the connection")
        self._body_left = message.get("more_body", False)
        return message.get("body", b"")

    async def unary(self, upstream: Upstream, pending: Any) -> Any:
        """The reply to a call whose request has been sent; the call is cancelled when the client goes away.

        Raises the service's PlatformError. The request body must have been read.
        """
        gone: asyncio.Task[None] | None = None

        def watch() -> None:
            nonlocal gone
            gone = asyncio.create_task(self.gone())
            gone.add_done_callback(lambda _: pending.cancel())

        watching = asyncio.get_running_loop().call_later(_UNWATCHED_SECONDS, watch)
        try:
            return await pending
        except grpc.aio.AioRpcError as error:
            raise upstream.error(error) from None
        except asyncio.CancelledError:
            if gone is not None and gone.done() and not gone.cancelled():
                raise Cancelled("CLIENT_GONE", "the client closed the connection") from None
            raise
        finally:
            watching.cancel()
            if gone is not None:
                gone.cancel()

    async def gone(self) -> None:
        """Returns when the client goes away."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass


# What a route leads to: the call and the decoded variables of its path template → the answer.
Endpoint = Callable[[Call, dict[str, str]], Awaitable[Response]]


def _too_large() -> HttpError:
    message = f"the body is larger than {MAX_BODY_BYTES} bytes"
    error = ResourceExhausted("BODY_TOO_LARGE", message, limit_bytes=MAX_BODY_BYTES)
    return HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error)


async def _unpacked(coding: str, body: bytes) -> bytes:
    try:
        return await compression.unpack(coding, body, MAX_BODY_BYTES)
    except compression.TooLarge:
        raise _too_large() from None
    except compression.BadEncoding as error:
        raise InvalidArgument.of("body", f"is not {coding}: {error}") from None


def _unsupported(how: str) -> HttpError:
    error = InvalidArgument([Violation("Content-Type", how)], "UNSUPPORTED_MEDIA_TYPE")
    return HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error)


def _unknown_encoding(how: str, accepted: str = ", ".join(compression.CODINGS)) -> HttpError:
    error = InvalidArgument([Violation("Content-Encoding", how)], "UNSUPPORTED_MEDIA_TYPE")
    return HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, {"Accept-Encoding": accepted})


def _timeout(seconds: str | None, grpc_timeout: str | None) -> float | None:
    """`X-Request-Timeout: 2.5` in seconds, or gRPC's own header. Raises InvalidArgument."""
    value = 0.0
    if seconds is None and grpc_timeout is None:
        return None
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
