"""Writing to one reader of a stream: never more than it takes, and not for ever to one that takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from starlette.types import Message, Scope, Send

from services.gateway.http.http1_protocol import TRANSPORT
from services.gateway.streams.server_stream import LAST_WORDS_SECONDS
from services.mesh.errors import PlatformError, ResourceExhausted

# A proxy or a browser takes a connection that is silent for longer for dead.
BEAT_SECONDS = 15.0
# What the system holds for one reader; left alone it may be megabytes, and what a reader takes shows late.
_SEND_BUFFER_BYTES = 128 * 1024
# On, 0 s: closing resets.
_RESET = struct.pack("ii", 1, 0)


class Writer:
    """`send` waits while the reader's buffers are full; what it waits with is one message."""

    def __init__(self, scope: Scope, send: Send, slow_seconds: float) -> None:
        self._send = send
        self._transport: asyncio.WriteTransport = scope["state"][TRANSPORT]
        self._socket: socket.socket = self._transport.get_extra_info("socket")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._slow_seconds = slow_seconds
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._limit: asyncio.Timeout | None = None
        self._unsent_bytes = 0
        self._written_at = self._loop.time()

    async def write(self, message: Message) -> None:
        """Raises ResourceExhausted when the reader has taken no byte for `slow_seconds`."""
        async with self._lock:
            try:
                async with asyncio.timeout(self._slow_seconds) as self._limit:
                    self._unsent_bytes = self._transport.get_write_buffer_size()
                    await self._send(message)
            except TimeoutError:
                why = f"the reader took no byte for {self._slow_seconds:g} s; connect again and resume"
                raise ResourceExhausted("SLOW_READER", why, seconds=self._slow_seconds) from None
            finally:
                self._limit = None
                self._written_at = self._loop.time()

    async def watch(self, end: Callable[[PlatformError], None], beat: Message | None = None) -> None:
        """More time for a reader that takes bytes, and `beat` for one that waits; `end` when it cannot be written."""
        while True:
            await asyncio.sleep(min(self._slow_seconds / 4, BEAT_SECONDS))
            now, unsent_bytes = self._loop.time(), self._transport.get_write_buffer_size()
            if self._limit is not None:
                if unsent_bytes < self._unsent_bytes:
                    self._unsent_bytes = unsent_bytes
                    self._limit.reschedule(now + self._slow_seconds)
            elif beat is not None and not unsent_bytes and now - self._written_at >= BEAT_SECONDS:
                try:
                    await self.write(beat)
                except PlatformError as error:
                    end(error)

    async def last_words(self, message: Message) -> None:
        """What ends the stream. A reader that does not make room for it has its connection reset."""
        try:
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._send(message)
        except TimeoutError:
            self.reset()

    def reset(self, after_seconds: float = 0) -> None:
        """Drop the connection with whatever the reader has not taken; nothing happens when it is closed by then."""
        self._loop.call_later(after_seconds, self._abort)

    def _abort(self) -> None:
        # Closed already: asyncio's socket says one, uvloop's the other.
        with contextlib.suppress(OSError, ValueError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()
