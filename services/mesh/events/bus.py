"""NATS JetStream: a connection that outlives its server, and the two streams of the mesh."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig

from services.mesh.errors import Unauthenticated
from services.mesh.events.nkeys import UserKey
from services.mesh.telemetry.outage_log import OutageLog

log = logging.getLogger(__name__)

STREAM = "RLHF_EVENTS"
DEAD_STREAM = "RLHF_DEAD_EVENTS"
SUBJECTS = "rlhf.event.v1.>"
DEAD_PREFIX = "rlhf.dead"
KEEP_SECONDS = 7 * 24 * 3600.0
# Longer than any outage of the relay between publishing and marking.
DUPLICATE_WINDOW_SECONDS = 3600.0
_RECONNECT_SECONDS = 1.0
_CLOSE_SECONDS = 1.0


class _ProvenClient(Client):
    """Proves who it is by the key in place of a password, and goes on only with the server of the certificate.

    A password would be told to whoever has the server's port, and events too.
    """

    def __init__(self, key: UserKey | None, server: ssl.SSLContext | None) -> None:
        super().__init__()
        self.proofs: dict[str, Any] = {}
        if key is not None:
            self.proofs["signature_cb"] = key.sign
            # What the client itself sets, from a seed that it reads by a package which we do without.
            self._public_nkey = key.public
        if server is not None:
            # First, as otherwise what somebody says in plain text decides whether there is TLS at all.
            self.proofs |= {"tls": server, "tls_handshake_first": True}


def client_of(url: str) -> tuple[Client, str]:
    """A client for `url`, and the address that it is to `connect` to with the options of `signing`.

    `nats://host:port?nkey=<file>&certificate=<file>` names a file with the seed of a key and one with the only
    certificate that the server may have; other addresses are taken as they are. Raises Unauthenticated where there is
    no such seed or certificate.
    """
    address, _, query = url.partition("?")
    files = dict(parse_qsl(query))
    if not files.keys() & {"nkey", "certificate"}:
        return Client(), url
    key = UserKey.read(Path(files["nkey"])) if "nkey" in files else None
    return _ProvenClient(key, _only(files["certificate"]) if "certificate" in files else None), address


def _only(certificate: str) -> ssl.SSLContext:
    """A context of clients that trusts nothing else. Its file may hold a key beside the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=certificate)
    except OSError:
        raise Unauthenticated("NO_CERTIFICATE", f"{certificate} has no certificate of NATS", path=certificate) from None
    return context


def signing(client: Client) -> dict[str, Any]:
    return client.proofs if isinstance(client, _ProvenClient) else {}


async def connect(url: str, **options: Any) -> Client:
    """A connected client for `url`, as `client_of` has it."""
    client, address = client_of(url)
    await client.connect(address, **signing(client), **options)
    return client


class Bus:
    """A connection to NATS that outlives its server, which may start later than we do. An async context manager.

    `told` hears when NATS begins to be of use and when it ceases to: connected, and taking what is published. What
    needs no NATS goes on without it.
    """

    def __init__(self, url: str, name: str, told: Callable[[bool], Awaitable[None]] | None = None) -> None:
        self._url = url
        self._name = name
        self._told = told or _tell_nobody
        self._is_of_use: bool | None = None
        self._client = Client()
        self._connecting: asyncio.Task[None] | None = None
        self._outage = OutageLog(log, "NATS is away; events wait in the database, everything else goes on")
        self._impostor = OutageLog(log, "the port of NATS is another's, who is told nothing; end what holds it")

    async def __aenter__(self) -> Bus:
        self._connecting = asyncio.create_task(self._stay_connected(), name="nats")
        return self

    async def __aexit__(self, *_: object) -> None:
        task, self._connecting = self._connecting, None
        # Again, should the client swallow the cancellation: it uses wait_for, which in Python 3.11 can.
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1)

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

    async def judge(self, of_use: bool) -> None:
        """What whoever publishes has seen. A server whose disk was full answers every question, and takes no message
        until it is started again (nats-server 2.x: a stream that could not be written once is not tried again).
        """
        if of_use is not self._is_of_use:
            self._is_of_use = of_use
            await self._told(of_use)

    async def _stay_connected(self) -> None:
        """A new client for every connection.

        The client's own reconnecting ends for good, without a word, at whatever it does not expect of a server that is
        on its way down or up: an INFO that is cut off, or, on uvloop, writing to a connection that was reset (nats-py
        2.16, `_attempt_reconnect`). Its callbacks can get lost the same way.
        """
        while True:
            try:
                self._client, address = client_of(self._url)
                await self._connect(self._client, address)
                self._outage.over()
                self._impostor.over()
                await self.judge(of_use=True)
                while self._client.is_connected:  # noqa: ASYNC110 - its callbacks tell, or do not
                    await asyncio.sleep(_RECONNECT_SECONDS)
                self._outage.failed("the connection is lost")
            except Exception as error:
                self._outage.failed(error)
            finally:
                # After a TLS that did not come about, what it waits for does not come either (nats-py 2.16 on asyncio).
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_CLOSE_SECONDS):
                        await self._client.close()
            await self.judge(of_use=False)
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _connect(self, client: Client, address: str) -> None:
        async def tell(error: Exception) -> None:
            if client.is_connected:
                log.warning("nats: %s", error or type(error).__name__)
            elif isinstance(error, ssl.SSLError):
                # OpenSSL's own words say nothing of whose port it is.
                self._impostor.failed(f"it lacks the certificate: {error.reason or error}")
            else:
                self._outage.failed(error)

        await client.connect(
            address,
            **signing(client),
            name=self._name,
            allow_reconnect=False,
            # Then this client gives up, and the next one is made: one path for every way in which a server is away.
            max_reconnect_attempts=1,
            reconnect_time_wait=_RECONNECT_SECONDS,  # pyright: ignore[reportArgumentType] - it is slept
            # A peer that vanished without a word is noticed within a minute instead of four.
            ping_interval=20,
            error_cb=tell,
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


async def _tell_nobody(connected: bool) -> None:
    """Nobody asked."""


def _is_news(record: logging.LogRecord) -> bool:
    return "returning true from eof_received() has no effect" not in record.getMessage()


# What asyncio says at the end of each connection whose TLS began after it was open, and a probe makes one a second.
logging.getLogger("asyncio").addFilter(_is_news)
