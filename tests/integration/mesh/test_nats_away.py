"""A server that is on its way down or up says anything, or breaks off anywhere; the bus gets its connection in the end.

On uvloop, as the services run: its transports raise other errors than those of asyncio.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from pathlib import Path

import nats.errors
import pytest
import uvloop

from services.mesh.events import bus as mesh_nats
from services.mesh.events.bus import Bus
from services.supervisor import embedded
from services.supervisor.embedded import process
from tests.fix_member import until

INFO = b"INFO " + json.dumps({"max_payload": 1_048_576, "headers": True}).encode() + b"\r\n"
RESET = struct.pack("ii", 1, 0)
# What is said, whether the client's CONNECT is waited for, and whether the connection is then reset or closed.
ENDS = [
    (said, waits, resets)
    for said in (b"", INFO, b"INFO\r\n", b"INFO {\r\n", b"HTTP/1.1 400 Bad Request\r\n")
    for waits in (False, True)
    for resets in (False, True)
]


class Dying:
    """Ends each connection in another way, until it has tried all."""

    def __init__(self) -> None:
        self.left = list(ENDS)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said, waits, resets = self.left.pop() if self.left else (b"", False, True)
        writer.write(said)
        await writer.drain()
        if waits and said == INFO:
            await reader.readline()
            writer.write(b"PONG\r\n")
            await writer.drain()
        if resets:
            writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        writer.close()


async def connected(bus: Bus) -> bool:
    try:
        await bus.stream()
    except (nats.errors.Error, TimeoutError):
        return False
    return True


async def go_through(folder: Path, *, known_before: bool) -> None:
    server = embedded.Nats(folder, embedded.free_port())
    async with Bus(server.url, "testing") as bus:
        if known_before:
            async with process.running(server.program(folder / "log")):
                await until(lambda: connected(bus))
        dying = Dying()
        listener = await asyncio.start_server(dying.handle, "127.0.0.1", server.port)
        await until(lambda: not dying.left, 60)
        listener.close()
        await listener.wait_closed()
        async with process.running(server.program(folder / "log")):
            await until(lambda: connected(bus))


@pytest.mark.parametrize("known_before", [True, False])
def test_a_server_that_breaks_off_anywhere_is_tried_until_it_is_there(
    known_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_nats, "_RECONNECT_SECONDS", 0.02)
    monkeypatch.setattr(mesh_nats, "_CLOSE_SECONDS", 0.02)
    uvloop.run(go_through(tmp_path, known_before=known_before))
