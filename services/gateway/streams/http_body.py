"""A stream as the body of an HTTP answer: Server-Sent Events, or one JSON object a line.

Sources: HTML Living Standard, 9.2 (event streams); https://github.com/ndjson/ndjson-spec.
"""

from __future__ import annotations

import asyncio
import re

from google.protobuf.message import Message
from starlette.responses import Response
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from services.gateway.http import problems
from services.gateway.http.request import Call
from services.gateway.streams.server_stream import GONE, Stream, StreamCaller
from services.gateway.streams.slow_reader import Writer
from services.mesh.errors import PlatformError

# How long a browser waits before it connects again.
RETRY_MILLISECONDS = 1000

# Of JSON, where they mean nothing between tokens and do not stand in strings.
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")
# Line ends of Unicode, which many readers of lines take for such: NEL, LS, PS.
_UNICODE_LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
_WEIGHTLESS = re.compile(r";\s*q=0(\.0*)?\s*(;|$)")


class Events:
    """`text/event-stream`. A message's id is its cursor, which comes back as `Last-Event-ID`.

    `first` opens the body, `beat` keeps it open, `end` is its regular end.
    """

    media_type = "text/event-stream"
    first = b"retry: %d\n\n" % RETRY_MILLISECONDS
    beat = b":\n\n"
    end = b"event: end\ndata: {}\n\n"

    def message(self, content: bytes, cursor: int | None) -> bytes:
        name = b"" if cursor is None else b"id: %d\n" % cursor
        return name + b"data: %b\n\n" % one_line(content)

    def error(self, content: bytes) -> bytes:
        return b"event: error\ndata: %b\n\n" % one_line(content)


class Lines:
    """`application/x-ndjson`."""

    media_type = "application/x-ndjson"
    first = b""
    beat = b""
    end = b""

    def message(self, content: bytes, cursor: int | None) -> bytes:
        return one_line(content) + b"\n"

    def error(self, content: bytes) -> bytes:
        return self.message(b'{"error": %b}' % content, None)


def one_line(content: bytes) -> bytes:
    """The same JSON without anything that ends a line."""
    content = content.translate(_LINE_ENDS)
    for raw, escaped in _UNICODE_LINE_ENDS:
        content = content.replace(raw, escaped)
    return content


Frames = Events | Lines


def frames(accept: str) -> Frames:
    """What the client wants: events where its `Accept` names them, else lines."""
    wanted = (part.strip().lower() for part in accept.split(","))
    named = any(part.partition(";")[0].strip() == Events.media_type and not _WEIGHTLESS.search(part) for part in wanted)
    return Events() if named else Lines()


class StreamAnswer(Response):
    """Sends messages as they come, at the pace of the reader."""

    def __init__(self, caller: StreamCaller, call: Call, request: Message, slow_seconds: float) -> None:
        self._frames = frames(call.headers.get("accept", ""))
        super().__init__(media_type=self._frames.media_type, headers={"X-Accel-Buffering": "no", "Vary": "Accept"})
        del self.headers["content-length"]
        self._caller = caller
        self._call = call
        self._request = request
        self._slow_seconds = slow_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises the service's error when it comes before the first message."""
        if self._call.request.method == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send(_body(b"", more=False))
            return
        async with self._caller.opened(self._call, self._request) as stream:
            gone = asyncio.create_task(self._call.gone())
            gone.add_done_callback(lambda task: task.cancelled() or stream.end(GONE))
            try:
                if not await stream.begin() and self._comes_back():
                    # By this a browser knows that there is nothing to come back for.
                    await Response(status_code=204)(scope, receive, send)
                    return
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._send_all(stream, Writer(scope, send, self._slow_seconds))
            finally:
                gone.cancel()

    def _comes_back(self) -> bool:
        return isinstance(self._frames, Events) and "last-event-id" in self._call.headers

    async def _send_all(self, stream: Stream, writer: Writer) -> None:
        beat = _body(self._frames.beat) if self._frames.beat else None
        watching = asyncio.create_task(writer.watch(stream.end, beat))
        try:
            if self._frames.first:
                await writer.write(_body(self._frames.first))
            while (message := await stream.next()) is not None:
                await writer.write(_body(self._frames.message(*self._caller.read(message))))
            last = self._frames.end
        except PlatformError as error:
            if error is GONE:
                return
            stream.end(error)
            last = self._frames.error(problems.to_json(problems.document(error, self._call.request_id)))
        finally:
            watching.cancel()
        await writer.last_words(_body(last, more=False))


def _body(content: bytes, *, more: bool = True) -> AsgiMessage:
    return {"type": "http.response.body", "body": content, "more_body": more}
