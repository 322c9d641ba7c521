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

import nats.errors
from google.protobuf import json_format
from google.protobuf.message import Message
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.mesh import identity, names
from services.mesh.errors import ResourceExhausted, Unavailable
from services.mesh.nats import DEAD_PREFIX, STREAM, Bus
from services.mesh.postgres import Connection, Database, wait

__all__ = ["Bus", "Consumer", "Effect", "EventLog", "Relay", "StoredEvent"]

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

MAX_DELIVERIES = 5
OUTBOX_TOPIC = "outbox"
# NATS carries at most 1 MiB in a message, the envelope included.
MAX_PAYLOAD_BYTES = 900_000
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
        """Write one event in the transaction of the change that it tells of.

        Raises ResourceExhausted when NATS could not carry it: found out later, it would hold up all that follow.
        """
        payload = json_format.MessageToDict(message)
        if (size_bytes := len(json.dumps(payload))) > MAX_PAYLOAD_BYTES:
            what = f"{resource} is too big for an event: {size_bytes} bytes of JSON, at most {MAX_PAYLOAD_BYTES}"
            raise ResourceExhausted("EVENT_TOO_BIG", what, size_bytes=size_bytes, limit_bytes=MAX_PAYLOAD_BYTES)
        principal = identity.current()
        await connection.execute(
            "INSERT INTO events (id, type, resource, sequence, payload, principal) VALUES (%s, %s, %s, %s, %s, %s)",
            (
                names.uuid7(),
                message.DESCRIPTOR.full_name,
                resource,
                sequence,
                Jsonb(payload),
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
        config = ConsumerConfig(
            name=self._name,
            durable_name=self._name,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=30,
            filter_subjects=[f"{type_}.*" for type_ in self._effects],
        )
        # Makes it, or gives the one of an earlier version of this service the event types of this one.
        await context.add_consumer(STREAM, config)
        subscription = await context.pull_subscribe_bind(durable=self._name, stream=STREAM)
        try:
            while True:
                try:
                    # One at a time: what waits here while another is worked on would run out of its time and be
                    # delivered again, and deliveries are counted.
                    (message,) = await subscription.fetch(batch=1, timeout=_IDLE_SECONDS)
                except TimeoutError:
                    await subscription.consumer_info()  # raises when the server or the consumer is gone
                    continue
                await self._handle(context, message)
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _handle(self, context: JetStreamContext, message: Msg) -> None:
        while True:
            try:
                await self._apply(json.loads(message.data))
            except Unavailable:
                # Nobody's fault, so no delivery is spent on it: hold the message until the database is back.
                await message.in_progress()
                await asyncio.sleep(1)
            except Exception as error:
                await self._refuse(context, message, error)
                return
            else:
                await message.ack()
                return

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
        headers = {**(message.headers or {}), "Rlhf-Consumer": self._name, "Rlhf-Error": _header_value(repr(error))}
        headers["Nats-Msg-Id"] = f"{self._name}:{headers.get('Nats-Msg-Id', message.metadata.sequence.stream)}"
        await context.publish(f"{DEAD_PREFIX}.{self._name}", message.data, headers=headers)
        await message.term()


def _subject(event: StoredEvent) -> str:
    return f"{event.type}.{names.project_of(event.resource)}"


def _headers(event: StoredEvent) -> dict[str, str]:
    headers = {"Nats-Msg-Id": str(event.id)}
    if event.traceparent:
        headers["traceparent"] = event.traceparent
    return headers


def _header_value(text: str) -> str:
    """At most 500 ASCII characters on one line: what an exception says may be long, of many lines, and no UTF-8."""
    return " ".join(text.encode("ascii", "backslashreplace").decode().split())[:500]
