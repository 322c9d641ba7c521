"""A TCP relay that cuts connections when it is told to: what a client sees when a network breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Relay:
    """Listens on `port` of 127.0.0.1 and passes bytes to and from `target`, another port. All methods may be called
    from any thread."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._answer_bytes = self._request_bytes = 0
        self._cuts_left = 0
        self._at_an_answer = False
        self.cuts = 0
        self.port = 0

    def cut_after(self, *, answer_bytes: int = 0, request_bytes: int = 0, times: int = 1) -> None:
        """From now on cut a connection once so many bytes have come back, or gone, over it, so many times in all. The
        bytes that reach the number are lost with it.
        """
        self._answer_bytes, self._request_bytes, self._at_an_answer = answer_bytes, request_bytes, False
        self.cuts, self._cuts_left = 0, times

    def cut_at_an_answer(self) -> None:
        """Cut the connection over which the next answer to a gRPC call comes, before any of it is passed on. Other
        frames, which a server may send at any time, cut nothing.
        """
        self._answer_bytes = self._request_bytes = 0
        self.cuts, self._cuts_left, self._at_an_answer = 0, 1, True

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        passing = [
            asyncio.create_task(self._pass_on(reader, onward_writer, "_request_bytes")),
            asyncio.create_task(self._pass_on(onward_reader, writer, "_answer_bytes")),
        ]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for task in passing:
            task.cancel()
        await asyncio.gather(*passing, return_exceptions=True)
        for end in (writer, onward_writer):
            end.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: str) -> None:
        passed, frames = 0, _Frames()
        with contextlib.suppress(OSError):
            while data := await reader.read(16 * 1024):
                passed += len(data)
                answers = limit == "_answer_bytes" and frames.have_headers(data)
                # Before the bytes are passed on: else a client has its whole answer, and goes on before the cut.
                if self._cuts_left and (0 < getattr(self, limit) <= passed or (answers and self._at_an_answer)):
                    self._cuts_left -= 1
                    self.cuts += 1
                    return
                writer.write(data)
                await writer.drain()


class _Frames:
    """The frames of one direction of an HTTP/2 connection (RFC 9113, section 4.1), as its bytes come."""

    HEADER_BYTES, HEADERS = 9, 1

    def __init__(self) -> None:
        self._header = b""
        self._payload_left = 0

    def have_headers(self, data: bytes) -> bool:
        """Whether a HEADERS frame begins in these bytes: an answer, or its end."""
        found, place = False, 0
        while place < len(data):
            skipped = min(self._payload_left, len(data) - place)
            self._payload_left -= skipped
            place += skipped
            taken = data[place : place + self.HEADER_BYTES - len(self._header)]
            self._header += taken
            place += len(taken)
            if len(self._header) == self.HEADER_BYTES:
                self._payload_left = int.from_bytes(self._header[:3], "big")
                found |= self._header[3] == self.HEADERS
                self._header = b""
        return found


@contextlib.asynccontextmanager
async def relay(target: int) -> AsyncIterator[Relay]:
    made = Relay(target)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
