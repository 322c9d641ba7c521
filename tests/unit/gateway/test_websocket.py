"""Close codes, and a connection that does not answer a client which does not read."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from uvicorn.server import ServerState

from services.gateway.streams.server_stream import STOPPING
from services.gateway.streams.websocket import closing
from services.gateway.streams.websocket_protocol import WebSocketConnection
from services.mesh.errors import DataLoss, FailedPrecondition, PlatformError, ResourceExhausted, Unavailable


@pytest.mark.parametrize(
    ("why", "code"),
    [
        (None, 1000),
        (STOPPING, 1012),
        (Unavailable("SERVICE_UNREACHABLE", "away"), 1013),
        (ResourceExhausted("SLOW_READER", "slow"), 1013),
        (FailedPrecondition("WRONG_STATE", "no"), 1008),
        (DataLoss("CORRUPT", "no"), 1011),
        (PlatformError("INTERNAL", "internal error"), 1011),
    ],
)
def test_the_close_code_says_whether_to_come_back(why: PlatformError | None, code: int) -> None:
    assert closing(why)[0] == code


@pytest.mark.parametrize("message", ["é" * 200, "x" * 200, "\ud800" * 200])
def test_a_reason_fits_its_frame(message: str) -> None:
    _, reason = closing(FailedPrecondition("LONG", message))
    assert reason.startswith("LONG: ") and 100 < len(reason.encode()) <= 123


async def test_while_a_reader_takes_nothing_nothing_is_read_from_it() -> None:
    """Each ping would be answered into a buffer that only grows."""

    async def application(scope: Any, receive: Any, send: Any) -> None: ...

    connection = WebSocketConnection(
        uvicorn.Config(application, ws=WebSocketConnection, interface="asgi3"), ServerState(), {}
    )
    transport: Any = Mock(**{"is_closing.return_value": False, "get_extra_info.return_value": None})
    connection.connection_made(transport)
    connection.pause_writing()
    transport.pause_reading.assert_called_once()
    connection.resume_writing()
    transport.resume_reading.assert_called_once()
    connection.read_paused = True  # a message waits to be taken
    connection.pause_writing()
    connection.resume_writing()
    transport.resume_reading.assert_called_once()
