"""Events between services: a transactional outbox and its relay to NATS JetStream; consumer.py has the other end.

An event is a CloudEvents 1.0 JSON object; `type` is the full proto name of the message in `data`, the subject is
`<type>.<project>`, the NATS message id is the event's id. Delivery is at least once; a consumer's writes and its mark
of having consumed share one transaction, so each event takes effect once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import nats.errors
from google.protobuf import json_format
from google.protobuf.message import Message
from nats.js import JetStreamContext
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.mesh import identity, names
from services.mesh.db.postgres import Connection, Database, wait
from services.mesh.errors import ResourceExhausted, Unavailable
from services.mesh.events.bus import STREAM, Bus
from services.mesh.telemetry import metrics, tracing
from services.mesh.telemetry.outage_log import OutageLog

__all__ = ["Bus", "EventLog", "Relay", "StoredEvent"]

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

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
            "INSERT INTO events (id, type, resource, sequence, payload, principal, traceparent)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (
                names.uuid7(),
                message.DESCRIPTOR.full_name,
                resource,
                sequence,
                Jsonb(payload),
                principal.name if principal else "",
                tracing.traceparent(),
            ),
        )
        await self._database.notify(connection, OUTBOX_TOPIC)

    async def after(self, connection: Connection, resource: str, sequence: int) -> list[StoredEvent]:
        """What happened to `resource`, and to what is below it by name, after `sequence`: in order, a batch at most."""
        async with connection.cursor(row_factory=class_row(StoredEvent)) as cursor:
            await cursor.execute(
                "SELECT id, ordinal, type, resource, sequence, payload, principal, traceparent, create_time FROM events"
                # `0` is the character after `/`.
                " WHERE (resource || '/') COLLATE \"C\" >= %s AND (resource || '/') COLLATE \"C\" < %s"
                " AND sequence > %s ORDER BY sequence LIMIT %s",
                (f"{resource}/", f"{resource}0", sequence, _BATCH),
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


async def last_sequence(connection: Connection, resource: str, type_: str = "") -> int:
    """Of the events, of one type where it is given, of `resource` and of what is below it by name; 0 where none is.

    It is there before its resource, where another one had the name.
    """
    cursor = await connection.execute(
        "SELECT coalesce(max(sequence), 0) FROM events WHERE (resource || '/') COLLATE \"C\" >= %s"
        " AND (resource || '/') COLLATE \"C\" < %s AND (type = %s OR %s = '')",
        (f"{resource}/", f"{resource}0", type_, type_),
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0]


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
        outage = OutageLog(log, "events wait to be published")
        with self._database.notices.subscribe(OUTBOX_TOPIC) as written:
            while True:
                try:
                    count = await self._publish_batch()
                    outage.over()
                    if count < _BATCH:
                        await wait(written, _IDLE_SECONDS)
                except (nats.errors.Error, Unavailable, OSError, TimeoutError) as error:
                    outage.failed(error)
                    await asyncio.sleep(1)

    async def _publish_batch(self) -> int:
        async with self._database.transaction() as connection:
            events = await self._log.unpublished(connection)
        if not events:
            return 0
        published: list[Any] = []
        try:
            context = await self._bus.stream()
            for event in events:
                await self._publish(context, event)
                published.append(event.id)
        except (nats.errors.Error, OSError, TimeoutError):
            await self._bus.judge(of_use=False)
            raise
        finally:
            if published:
                async with self._database.transaction() as connection:
                    await self._log.mark_published(connection, published)
        await self._bus.judge(of_use=True)
        return len(events)

    async def _publish(self, context: JetStreamContext, event: StoredEvent) -> None:
        attributes = attributes_of("send", event.type, str(event.id))
        # One without a trace begins none here: it would say nothing but that the relay runs.
        with contextlib.ExitStack() as stack:
            if event.traceparent:
                name = f"send {event.type}"
                stack.enter_context(tracing.span(name, tracing.SpanKind.PRODUCER, event.traceparent, attributes))
            headers = {"Nats-Msg-Id": str(event.id), **dict(tracing.headers())}
            await context.publish(_subject(event), self._encode(event), headers=headers)
        metrics.instruments().sent_events.add(1, figure_of("send", event.type))

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


def _subject(event: StoredEvent) -> str:
    return f"{event.type}.{names.project_of(event.resource)}"


def figure_of(operation: str, type_: str) -> dict[str, str]:
    """What a figure about events of a type is told apart by."""
    return {
        "messaging.system": "nats",
        "messaging.operation.name": operation,
        "messaging.destination.name": STREAM,
        "rlhf.event.type": type_,
    }


def attributes_of(operation: str, type_: str, id_: str) -> dict[str, str]:
    """What a span about one event says."""
    return {**figure_of(operation, type_), "messaging.operation.type": operation, "messaging.message.id": id_}
