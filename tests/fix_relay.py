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
        self.cuts = 0
        self.port = 0

    def cut_after(self, *, answer_bytes: int = 0, request_bytes: int = 0, times: int = 1) -> None:
        """From now on cut a connection once so many bytes have come back, or gone, over it, so many times in all."""
        self._answer_bytes, self._request_bytes = answer_bytes, request_bytes
        self.cuts, self._cuts_left = 0, times

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
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(16 * 1024):
                writer.write(data)
                await writer.drain()
                passed += len(data)
                if self._cuts_left and 0 < getattr(self, limit) <= passed:
                    self._cuts_left -= 1
                    self.cuts += 1
                    return


@contextlib.asynccontextmanager
async def relay(target: int) -> AsyncIterator[Relay]:
    made = Relay(target)
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
