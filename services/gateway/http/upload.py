"""Uploads over HTTP, a route that is written by hand: the raw body into WriteUpload.

At most a message and a piece are held: a slow service slows the client down. How slow a client may be is the service's
to say, so what it sends goes on to the service while it is still sending.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import Any

import grpc
from rlhf.dataset.v1 import dataset_service_pb2 as dataset
from rlhf.dataset.v1 import dataset_service_pb2_grpc as dataset_grpc
from starlette.responses import Response

from services.gateway.http.problems import HttpError
from services.gateway.http.request import IDLE_SECONDS, Call
from services.gateway.transcoding.transcoder import fill_path, fill_query, to_json
from services.gateway.upstreams import Upstream
from services.mesh.errors import Cancelled, DeadlineExceeded, InvalidArgument, Violation
from services.mesh.rpc.sending import finish, send

UPLOAD_CHUNK_BYTES = 1024 * 1024
# After so long without a byte, what has come goes on in a smaller message: less than the service waits for one.
FLUSH_SECONDS = 5.0
_FINISH_SECONDS = 30.0
# Of the service, where it is the client who is late.
_LATE = ("WRITER_IDLE", "WRITER_SLOW")


class UploadEndpoint:
    """The raw body, from `?offset_bytes=N` on, into WriteUpload."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._stub: Any = dataset_grpc.DatasetServiceStub(upstream.channel)

    async def __call__(self, call: Call, captured: dict[str, str]) -> Response:
        first = _first_message(call, captured)
        writing = self._stub.WriteUpload(metadata=call.metadata())
        try:
            stopped = await _Forwarding(call, writing, first).run()
            async with asyncio.timeout(_FINISH_SECONDS):
                upload = await writing
        except grpc.aio.AioRpcError as failed:
            error = self._upstream.error(failed)
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, error) if error.reason in _LATE else error from None
        except TimeoutError:
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "the dataset service did not finish the upload") from None
        finally:
            writing.cancel()
        if stopped is not None:
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, stopped) if isinstance(stopped, UploadIdle) else stopped
        return Response(to_json(upload), media_type="application/json")


def _first_message(call: Call, captured: dict[str, str]) -> dataset.WriteUploadRequest:
    """Without a chunk. Raises HttpError 415, InvalidArgument."""
    call.refuse_encoding()
    if call.headers.get("content-type", "").lower().startswith("multipart/"):
        error = InvalidArgument.of("Content-Type", "send the bytes of the file themselves, not a form")
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error)
    first = dataset.WriteUploadRequest()
    violations = fill_query(first, call.query, {"name": "in the path", "chunk": "the body"})
    if first.offset_bytes < 0:
        violations.append(Violation("offset_bytes", "must be 0 or more"))
    if violations := violations + fill_path(first, captured):
        raise InvalidArgument(violations)
    return first


class UploadIdle(DeadlineExceeded):
    """The client stopped sending."""


class _Forwarding:
    """One body on its way into one call."""

    def __init__(self, call: Call, writing: Any, first: dataset.WriteUploadRequest) -> None:
        self._call = call
        self._writing = writing
        self._message = first
        self._is_first = True
        self._buffer = bytearray()
        self._patience: asyncio.Timeout | None = None
        writing.add_done_callback(self._answered)

    async def run(self) -> Exception | None:
        """Pass the body on in messages. What arrived is passed on even when the client stops or vanishes, which is
        returned. A service that has answered already gets no more: its answer is what counts."""
        stopped: Exception | None = None
        try:
            while (piece := await self._next()) is not None:
                self._buffer += piece
                while len(self._buffer) >= UPLOAD_CHUNK_BYTES:
                    if not await self._send():
                        return None
        except (Cancelled, UploadIdle) as error:
            stopped = error
        if not (self._buffer or self._is_first) or await self._send():
            await finish(self._writing)
        return stopped

    async def _next(self) -> bytes | None:
        """The next piece; None when none will come, or none is wanted. Raises Cancelled, UploadIdle."""
        while not self._writing.done():
            seconds = min(FLUSH_SECONDS, IDLE_SECONDS) if self._buffer else IDLE_SECONDS
            try:
                async with asyncio.timeout(seconds) as self._patience:
                    return await self._call.piece()
            except TimeoutError:
                if self._buffer:
                    await self._send()
                elif not self._writing.done():
                    message = f"no byte came for {IDLE_SECONDS:g} s"
                    raise UploadIdle("UPLOAD_IDLE", message, idle_seconds=IDLE_SECONDS) from None
        return None

    def _answered(self, _: object) -> None:
        """Wait for the client no longer."""
        if self._patience is not None:
            with contextlib.suppress(RuntimeError):  # nobody waits
                self._patience.reschedule(asyncio.get_running_loop().time())

    async def _send(self) -> bool:
        """Send what has come, at most one message. False when the service has answered."""
        message, self._message = self._message, dataset.WriteUploadRequest()
        message.chunk = bytes(self._buffer[:UPLOAD_CHUNK_BYTES])
        del self._buffer[:UPLOAD_CHUNK_BYTES]
        self._is_first = False
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                return await send(self._writing, message.SerializeToString())
        except TimeoutError:
            raise DeadlineExceeded("DEADLINE_EXCEEDED", "the dataset service stopped taking bytes") from None
