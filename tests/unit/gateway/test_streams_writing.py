"""A reader that takes bytes, however slowly, has more time; one that takes none has an end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import uvloop
from starlette.types import Message

from services.gateway.http.http1_protocol import TRANSPORT
from services.gateway.streams.slow_reader import Writer
from services.mesh.errors import PlatformError, ResourceExhausted


class Reader:
    """Its buffer holds what `sizes` says, one after the other, and takes no message until `room` is set."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = itertools.chain(sizes, itertools.repeat(sizes[-1]))
        self.asked = 0
        self.room = asyncio.Event()
        self.taken: list[Message] = []
        transport: Any = Mock(**{"get_write_buffer_size.side_effect": self._size})
        self.scope: dict[str, Any] = {"state": {TRANSPORT: transport}}
        self.transport = transport

    def _size(self) -> int:
        self.asked += 1
        return next(self.sizes)

    async def send(self, message: Message) -> None:
        await self.room.wait()
        self.taken.append(message)


async def test_a_reader_that_takes_nothing_is_given_up() -> None:
    reader = Reader(100)
    with pytest.raises(ResourceExhausted) as caught:
        await Writer(reader.scope, reader.send, 0.05).write({"type": "x"})
    assert caught.value.reason == "SLOW_READER"


async def test_a_reader_that_takes_a_little_has_more_time() -> None:
    reader = Reader(*range(100, 90, -1))
    writer = Writer(reader.scope, reader.send, 0.8)
    ended: list[PlatformError] = []
    watching = asyncio.create_task(writer.watch(ended.append))
    with pytest.raises(ResourceExhausted):
        await writer.write({"type": "x"})
    watching.cancel()
    # Four looks a while: one at the start, nine that saw it take something, and those of the while in which it did not.
    assert reader.asked >= 12
    assert not ended


async def test_a_reader_that_waits_is_sent_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.streams.slow_reader.BEAT_SECONDS", 0.01)
    reader = Reader(0)
    reader.room.set()
    writer = Writer(reader.scope, reader.send, 30)
    beat = {"type": "beat"}
    watching = asyncio.create_task(writer.watch(Mock(), beat))
    async with asyncio.timeout(10):
        while len(reader.taken) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    watching.cancel()
    assert reader.taken[:3] == [beat] * 3


async def test_who_does_not_make_room_for_the_last_words_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.streams.slow_reader.LAST_WORDS_SECONDS", 0.01)
    reader = Reader(100)
    await Writer(reader.scope, reader.send, 30).last_words({"type": "x"})
    async with asyncio.timeout(10):
        while not reader.transport.abort.called:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_dropping_a_connection_that_is_closed_by_then_does_nothing(run: Callable[[Any], None]) -> None:
    """A WebSocket is dropped some time after its closing handshake, which as a rule has ended it."""

    async def drop() -> list[Any]:
        wrong: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        _, client = await asyncio.open_connection("127.0.0.1", port)
        writer = Writer({"state": {TRANSPORT: client.transport}}, Mock(), 30)
        client.close()
        await client.wait_closed()
        writer.reset()
        await asyncio.sleep(0)  # called in the next turn of the loop
        await asyncio.sleep(0)
        server.close()
        return wrong

    found: list[Any] = []

    async def main() -> None:
        found.extend(await drop())

    run(main())
    assert found == []
