"""A stream over a WebSocket: messages out, commands in. Source: RFC 6455."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from google.protobuf.message import Message
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from services.gateway.http.request import Incoming
from services.gateway.streams.server_stream import GONE, STOPPING, Stream, StreamCaller
from services.gateway.streams.slow_reader import Writer
from services.gateway.streams.websocket_commands import Command, CommandReader
from services.mesh.errors import InvalidArgument, PlatformError

# Of a command, unpacked.
MAX_MESSAGE_BYTES = 64 * 1024
PING_SECONDS = 20.0
# Of the closing handshake; after it the connection is dropped.
_CLOSE_SECONDS = 15.0
_MAX_REASON_BYTES = 123
_NORMAL, _UNSUPPORTED, _POLICY, _INTERNAL, _RESTART, _LATER = 1000, 1003, 1008, 1011, 1012, 1013
_BINARY = InvalidArgument.of("message", "send text: one JSON object a message")
_CODES: Mapping[str, int] = {
    "UNAVAILABLE": _LATER,
    "RESOURCE_EXHAUSTED": _LATER,
    "INTERNAL": _INTERNAL,
    "UNKNOWN": _INTERNAL,
    "DATA_LOSS": _INTERNAL,
}


class WebSocketAnswer:
    """Sends messages as they come, at the pace of the reader, and takes commands meanwhile."""

    def __init__(
        self,
        caller: StreamCaller,
        commands: Mapping[str, Command],
        incoming: Incoming,
        captured: dict[str, str],
        slow_seconds: float,
    ) -> None:
        self._caller = caller
        self._commands = commands
        self._incoming = incoming
        self._captured = captured
        self._slow_seconds = slow_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what refuses the handshake: a wrong request, or the service's error before the first message."""
        request: Message = self._caller.request(self._incoming, self._captured)
        await receive()  # websocket.connect
        async with self._caller.opened(self._incoming, request) as stream:
            await stream.begin()
            await send({"type": "websocket.accept", "headers": []})
            writer = Writer(scope, _unless_closed(send), self._slow_seconds)
            try:
                await self._talk(stream, writer, receive)
            except OSError:  # the client has gone
                pass
            finally:
                writer.reset(_CLOSE_SECONDS)

    async def _talk(self, stream: Stream, writer: Writer, receive: Receive) -> None:
        async def answer(text: str) -> None:
            try:
                await writer.write(_text(text))
            except PlatformError as error:
                stream.end(error)
            except OSError:
                stream.end(GONE)

        commands = CommandReader(self._commands, self._incoming, self._captured, answer)
        reading = asyncio.create_task(_read(receive, commands, stream))
        watching = asyncio.create_task(writer.watch(stream.end))
        why: PlatformError | None = None
        try:
            while (message := await stream.next()) is not None:
                content, _ = self._caller.read(message)
                await writer.write(_text(content.decode()))
            await commands.finish()
        except PlatformError as error:
            why = error
            stream.end(error)
        finally:
            commands.stop()
            reading.cancel()
            watching.cancel()
        if why is not GONE:
            code, reason = closing(why)
            await writer.last_words({"type": "websocket.close", "code": code, "reason": reason})


async def _read(receive: Receive, commands: CommandReader, stream: Stream) -> None:
    """Until the client goes away."""
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text is None:
            stream.end(_BINARY)
            return
        await commands.take(text)
    stream.end(GONE)


def _unless_closed(send: Send) -> Send:
    """The protocol closes by itself what breaks its rules; sending then is no fault of ours. Raises OSError."""

    async def sending(message: AsgiMessage) -> None:
        try:
            await send(message)
        except RuntimeError as error:
            raise BrokenPipeError(str(error)) from None

    return sending


def closing(why: PlatformError | None) -> tuple[int, str]:
    """Code and reason of the close frame; None is a stream that has come to its end."""
    if why is None:
        return _NORMAL, "end"
    code = _RESTART if why is STOPPING else _UNSUPPORTED if why is _BINARY else _CODES.get(why.code, _POLICY)
    reason = f"{why.reason}: {why.message}".encode(errors="replace")[:_MAX_REASON_BYTES]
    return code, reason.decode(errors="ignore")


def _text(text: str) -> AsgiMessage:
    return {"type": "websocket.send", "text": text}
