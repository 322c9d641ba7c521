"""Events between services: a transactional outbox, its relay to NATS JetStream, and an idempotent durable consumer.

An event is a CloudEvents 1.0 JSON object; `type` is the full proto name of the message in `data`, the subject is
`<type>.<project>`, the NATS message id is the event's id. Delivery is at least once; a consumer's writes and its mark
of having consumed share one transaction, so each event takes effect once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import nats
import nats.errors
import nats.js.errors
from google.protobuf import json_format
from google.protobuf.message import Message
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, StreamConfig
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.mesh import identity, names
from services.mesh.errors import Unavailable
from services.mesh.postgres import Connection, Database, wait

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

STREAM = "RLHF_EVENTS"
DEAD_STREAM = "RLHF_DEAD_EVENTS"
SUBJECTS = "rlhf.event.v1.>"
DEAD_PREFIX = "rlhf.dead"
KEEP_SECONDS = 7 * 24 * 3600.0
# Longer than any outage of the relay between publishing and marking.
DUPLICATE_WINDOW_SECONDS = 3600.0
MAX_DELIVERIES = 5
OUTBOX_TOPIC = "outbox"
_BATCH = 200
_IDLE_SECONDS = 5.0


@dataclass(frozen=True)
class StoredEvent:
    """One row of the event log."""

    id: Any
    ordinal: int
    type: str
    resource: str
    sequence: int
    payload: dict[str, Any]
    principal: str
    traceparent: str
    create_time: datetime

    def message(self, kind: type[M]) -> M:
        return json_format.ParseDict(self.payload, kind(), ignore_unknown_fields=True)


class EventLog:
    """The events of one service."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, connection: Connection, resource: str, sequence: int, message: Message) -> None:
        """Write one event in the transaction of the change that it tells of."""
        principal = identity.current()
        await connection.execute(
            "INSERT INTO events (id, type, resource, sequence, payload, principal) VALUES (%s, %s, %s, %s, %s, %s)",
            (
                names.uuid7(),
                message.DESCRIPTOR.full_name,
                resource,
                sequence,
                Jsonb(json_format.MessageToDict(message)),
                principal.name if principal else "",
            ),
        )
        await self._database.notify(connection, OUTBOX_TOPIC)

    async def after(self, connection: Connection, type_: str, resource: str, sequence: int) -> list[StoredEvent]:
        """What happened to `resource` after `sequence`, in order."""
        async with connection.cursor(row_factory=class_row(StoredEvent)) as cursor:
            await cursor.execute(
                "SELECT id, ordinal, type, resource, sequence, payload, principal, traceparent, create_time FROM events"
                " WHERE type = %s AND resource = %s AND sequence > %s ORDER BY sequence",
                (type_, resource, sequence),
            )
            return await cursor.fetchall()

    async def unpublished(self, connection: Connection) -> list[StoredEvent]:
        async with connection.cursor(row_factory=class_row(StoredEvent)) as cursor:
            await cursor.execute(
                "SELECT id, ordinal, type, resource, sequence, payload, principal, traceparent, create_time FROM events"
                " WHERE publish_time IS NULL ORDER BY ordinal LIMIT %s",
                (_BATCH,),
            )
            return await cursor.fetchall()

    async def mark_published(self, connection: Connection, ids: list[Any]) -> None:
        await connection.execute("UPDATE events SET publish_time = now() WHERE id = ANY(%s)", (ids,))


class Bus:
    """A connection to NATS that outlives its server. An async context manager."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._client = Client()
        self._connecting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Bus:
        self._connecting = asyncio.create_task(self._connect(), name="nats")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._client.close()

    async def stream(self) -> JetStreamContext:
        """JetStream with both streams there. Raises a NATS error while the server is away."""
        if not self._client.is_connected:
            raise nats.errors.ConnectionClosedError
        context = self._client.jetstream(timeout=5)
        await _ensure_stream(context, STREAM, [SUBJECTS])
        await _ensure_stream(context, DEAD_STREAM, [f"{DEAD_PREFIX}.>"])
        return context

    async def _connect(self) -> None:
        await self._client.connect(
            self._url,
            name=self._name,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            error_cb=_log_error,
        )


class Relay:
    """Publishes what the event log holds, in order, and marks it.

    Two relays at once do no harm: JetStream drops a message id that it has seen.
    """

    def __init__(self, source: str, database: Database, log_: EventLog, bus: Bus) -> None:
        self._source = source
        self._database = database
        self._log = log_
        self._bus = bus

    async def run(self) -> None:
        """Until cancelled; waits out every outage of NATS or the database."""
        with self._database.notices.subscribe(OUTBOX_TOPIC) as written:
            while True:
                try:
                    if await self._publish_batch() == _BATCH:
                        continue
                    await wait(written, _IDLE_SECONDS)
                except (nats.errors.Error, Unavailable, OSError, TimeoutError) as error:
                    log.warning("events wait to be published: %s", error or type(error).__name__)
                    await asyncio.sleep(1)

    async def _publish_batch(self) -> int:
        async with self._database.transaction() as connection:
            events = await self._log.unpublished(connection)
        if not events:
            return 0
        context = await self._bus.stream()
        published: list[Any] = []
        try:
            for event in events:
                await context.publish(_subject(event), self._encode(event), headers=_headers(event))
                published.append(event.id)
        finally:
            if published:
                async with self._database.transaction() as connection:
                    await self._log.mark_published(connection, published)
        return len(events)

    def _encode(self, event: StoredEvent) -> bytes:
        return json.dumps(
            {
                "specversion": "1.0",
                "id": str(event.id),
                "source": f"/{self._source}",
                "type": event.type,
                "subject": event.resource,
                "time": event.create_time.isoformat(),
                "datacontenttype": "application/json",
                "sequence": str(event.sequence),
                "principal": event.principal,
                "data": event.payload,
            }
        ).encode()


# What a consumer does with an event, inside the transaction that marks it as consumed.
Effect = Callable[[Connection, Message], Awaitable[None]]


class Consumer:
    """A durable consumer of some event types, each with its effect.

    An event whose effect fails is delivered again, after MAX_DELIVERIES it goes to the dead-letter stream, from which
    a person may publish it again.
    """

    def __init__(self, name: str, database: Database, bus: Bus, effects: Mapping[type[Message], Effect]) -> None:
        self._name = name
        self._database = database
        self._bus = bus
        self._effects = {kind.DESCRIPTOR.full_name: (kind, effect) for kind, effect in effects.items()}

    async def run(self) -> None:
        """Until cancelled; waits out every outage of NATS or the database."""
        identity.become(identity.Principal(f"service:{self._name}"))
        while True:
            try:
                await self._consume()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                log.warning("consumer %s waits: %s", self._name, error or type(error).__name__)
                await asyncio.sleep(1)

    async def _consume(self) -> None:
        context = await self._bus.stream()
        subjects = [f"{type_}.*" for type_ in self._effects]
        config = ConsumerConfig(
            durable_name=self._name,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=30,
            filter_subjects=subjects,
        )
        subscription = await context.pull_subscribe("", durable=self._name, stream=STREAM, config=config)
        try:
            while True:
                try:
                    messages = await subscription.fetch(batch=50, timeout=_IDLE_SECONDS)
                except TimeoutError:
                    await subscription.consumer_info()  # raises when the server or the consumer is gone
                    continue
                for message in messages:
                    await self._handle(context, message)
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _handle(self, context: JetStreamContext, message: Msg) -> None:
        try:
            await self._apply(json.loads(message.data))
        except Unavailable:
            await message.nak(delay=1)
        except Exception as error:
            await self._refuse(context, message, error)
        else:
            await message.ack()

    async def _apply(self, envelope: dict[str, Any]) -> None:
        kind, effect = self._effects[envelope["type"]]
        data = json_format.ParseDict(envelope["data"], kind(), ignore_unknown_fields=True)
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                "INSERT INTO consumed_events (consumer, event_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (self._name, envelope["id"]),
            )
            if cursor.rowcount:
                await effect(connection, data)

    async def _refuse(self, context: JetStreamContext, message: Msg, error: Exception) -> None:
        deliveries = message.metadata.num_delivered
        log.exception("consumer %s: delivery %d failed", self._name, deliveries, exc_info=error)
        if deliveries < MAX_DELIVERIES:
            await message.nak(delay=2.0**deliveries / 10)
            return
        headers = {**(message.headers or {}), "Rlhf-Consumer": self._name, "Rlhf-Error": repr(error)[:500]}
        headers["Nats-Msg-Id"] = f"{self._name}:{headers.get('Nats-Msg-Id', message.metadata.sequence.stream)}"
        await context.publish(f"{DEAD_PREFIX}.{self._name}", message.data, headers=headers)
        await message.term()


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


def _subject(event: StoredEvent) -> str:
    return f"{event.type}.{names.project_of(event.resource)}"


def _headers(event: StoredEvent) -> dict[str, str]:
    headers = {"Nats-Msg-Id": str(event.id)}
    if event.traceparent:
        headers["traceparent"] = event.traceparent
    return headers


async def _log_error(error: Exception) -> None:
    log.warning("nats: %s", error or type(error).__name__)
