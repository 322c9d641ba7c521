"""NATS JetStream: a connection that outlives its server, and the two streams of the mesh."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig

log = logging.getLogger(__name__)

STREAM = "RLHF_EVENTS"
DEAD_STREAM = "RLHF_DEAD_EVENTS"
SUBJECTS = "rlhf.event.v1.>"
DEAD_PREFIX = "rlhf.dead"
KEEP_SECONDS = 7 * 24 * 3600.0
# Longer than any outage of the relay between publishing and marking.
DUPLICATE_WINDOW_SECONDS = 3600.0
_RECONNECT_SECONDS = 1


class Bus:
    """A connection to NATS that outlives its server, which may start later than we do. An async context manager."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._client = Client()
        self._connecting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Bus:
        self._connecting = asyncio.create_task(self._stay_connected(), name="nats")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._client.close()

    async def stream(self) -> JetStreamContext:
        """JetStream with both streams there, at the price of two questions to the server (0.5 ms).

        Raises a NATS error while the server is away.
        """
        if not self._client.is_connected:
            raise nats.errors.ConnectionClosedError
        context = self._client.jetstream(timeout=5)
        await _ensure_stream(context, STREAM, [SUBJECTS])
        await _ensure_stream(context, DEAD_STREAM, [f"{DEAD_PREFIX}.>"])
        return context

    async def _stay_connected(self) -> None:
        """The client reconnects by itself, but closes for good on errors that it does not know; then take a new one."""
        while True:
            closed = asyncio.Event()
            self._client = Client()
            try:
                await self._connect(closed)
                await closed.wait()
                log.warning("nats: the connection was closed; connecting anew")
            except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
                log.warning("nats: cannot connect: %s", error or type(error).__name__)
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _connect(self, closed: asyncio.Event) -> None:
        async def on_close() -> None:
            closed.set()

        await self._client.connect(
            self._url,
            name=self._name,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_SECONDS,
            # A peer that vanished without a word is noticed within a minute instead of four.
            ping_interval=20,
            error_cb=_log_error,
            closed_cb=on_close,
        )


async def _ensure_stream(context: JetStreamContext, name: str, subjects: list[str]) -> None:
    try:
        await context.stream_info(name)
    except nats.js.errors.NotFoundError:
        config = StreamConfig(
            name=name,
            subjects=subjects,
            max_age=KEEP_SECONDS,
            duplicate_window=DUPLICATE_WINDOW_SECONDS,
            discard=DiscardPolicy.OLD,
        )
        await context.add_stream(config)


async def _log_error(error: Exception) -> None:
    log.warning("nats: %s", error or type(error).__name__)
