"""Server streams for readers over HTTP: one call to the service each, its cursor, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from services.gateway.http.request import Incoming
from services.gateway.transcoding.transcoder import Route
from services.gateway.upstreams import Upstream
from services.mesh.errors import Cancelled, InvalidArgument, PlatformError, Unavailable

# How long the status line waits for the first message, so that an error before it has its own status. A stream that is
# silent for longer is begun all the same.
FIRST_SECONDS = 1.0
# How long a reader may take for the reason that its stream ends with.
LAST_WORDS_SECONDS = 3.0
# Messages that are kept as JSON, of each RPC, and how big they may be: 10 MB or so at most.
_KEPT = 64
_KEPT_BYTES = 32 * 1024

_CURSOR = re.compile(r"[0-9]{1,19}")

GONE = Cancelled("CLIENT_GONE", "the client closed the connection")
STOPPING = Unavailable("GATEWAY_STOPPING", "the gateway is going down; connect again and resume")


class Stream:
    """One reader's call. Who ends it before its time says why with `end`."""

    def __init__(self, upstream: Upstream, call: Any) -> None:
        self._upstream = upstream
        self._call = call
        self._first: asyncio.Future[Any] | None = None
        self._why: PlatformError | None = None

    async def begin(self) -> bool:
        """Wait a little for the first message. False when the stream has ended without one.

        Raises what `next` raises, when it comes so early.
        """
        self._first = first = asyncio.ensure_future(self._call.read())
        await asyncio.wait((first,), timeout=FIRST_SECONDS)
        return not first.done() or await self._result(first) is not None

    async def next(self) -> bytes | None:
        """The next message as it came; None after the last. Raises the service's error, or what `end` was given."""
        reading, self._first = self._first or self._call.read(), None
        return await self._result(reading)

    def end(self, why: PlatformError) -> None:
        """The service is told at once; `next` raises `why`."""
        self._why = self._why or why
        self._call.cancel()

    async def _result(self, reading: Awaitable[Any]) -> bytes | None:
        try:
            message = await reading
        except grpc.aio.AioRpcError as error:
            raise (self._why or self._upstream.error(error)) from None
        except asyncio.CancelledError:
            if self._why is None:
                raise
            raise self._why from None
        return None if message is grpc.aio.EOF else message


class OpenStreams:
    """Every stream that has a reader."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: set[Stream] = set()
        self._stopping = False
        self._empty = asyncio.Event()

    @property
    def count(self) -> int:
        return len(self._all)

    @contextlib.contextmanager
    def holding(self, stream: Stream) -> Iterator[None]:
        """Raises Unavailable when there are too many, or none may begin any more."""
        if self._stopping:
            raise STOPPING
        if len(self._all) >= self._limit:
            message = f"{self._limit} streams are open already; RLHF_GATEWAY_MAX_STREAMS allows more"
            raise Unavailable("TOO_MANY_STREAMS", message, limit=self._limit)
        self._all.add(stream)
        try:
            yield
        finally:
            self._all.discard(stream)
            if not self._all:
                self._empty.set()

    async def stop(self) -> None:
        """End them all, and wait until their readers have been told, or could not be."""
        self._stopping = True
        if not self._all:
            return
        self._empty.clear()
        for stream in tuple(self._all):
            stream.end(STOPPING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS + 1):
                await self._empty.wait()


class StreamCaller:
    """Calls one server-streaming RPC for readers."""

    def __init__(self, route: Route, upstream: Upstream, streams: OpenStreams) -> None:
        self._reply: Any = message_factory.GetMessageClass(route.method.output_type)
        self._route = route
        self._upstream = upstream
        self._streams = streams
        self._after, self._last = cursor_fields(route.method)
        self._invoke: Any = upstream.channel.unary_stream(route.rpc_path, request_serializer=_serialize)
        self._kept = functools.lru_cache(_KEPT)(self._read)

    def request(self, incoming: Incoming, captured: dict[str, str]) -> Message:
        """From path, query and `Last-Event-ID`. Raises InvalidArgument with everything that is wrong."""
        query = list(incoming.query)
        if self._after is not None and (last := incoming.headers.get("last-event-id", "").strip()):
            if not _CURSOR.fullmatch(last):
                raise InvalidArgument.of("Last-Event-ID", "must be an id that this stream has sent")
            # A browser that reconnects sends the query it began with, and the header besides: what it got since.
            names = (self._after.name, self._after.json_name)
            query = [(name, value) for name, value in query if name not in names]
            query.append((self._after.name, last))
        return self._route.request(captured, query)

    def read(self, message: bytes) -> tuple[bytes, int | None]:
        """A message as JSON, and what the stream resumes after; None when it cannot resume.

        Many readers of one resource get the same bytes, which are made into JSON, the dearest part, once.
        """
        return self._kept(message) if len(message) <= _KEPT_BYTES else self._read(message)

    def _read(self, message: bytes) -> tuple[bytes, int | None]:
        reply = self._reply.FromString(message)
        return self._route.answer(reply), None if self._last is None else getattr(reply, self._last.name)

    @contextlib.asynccontextmanager
    async def opened(self, incoming: Incoming, request: Message) -> AsyncIterator[Stream]:
        """The stream; whatever happens to its reader, the service's call ends with the block."""
        call = self._invoke(request, timeout=incoming.given_seconds, metadata=incoming.metadata())
        stream = Stream(self._upstream, call)
        try:
            with self._streams.holding(stream):
                yield stream
        finally:
            stream.end(GONE)


def cursor_fields(method: MethodDescriptor) -> tuple[FieldDescriptor | None, FieldDescriptor | None]:
    """`after_X` of the request and `last_X` of the answer; the contract has both or neither, one int64 each."""
    after = next((field for field in method.input_type.fields if field.name.startswith("after_")), None)
    last = None if after is None else method.output_type.fields_by_name.get(f"last_{after.name[len('after_') :]}")
    return (after, last) if last is not None else (None, None)


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()
