"""Idempotent durable consumers of events: an effect and the mark of having consumed share one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import nats.errors
from google.protobuf import json_format
from google.protobuf.message import Message
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from services.mesh import identity
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import Unavailable
from services.mesh.events.bus import DEAD_PREFIX, STREAM, Bus
from services.mesh.events.outbox import attributes_of, figure_of
from services.mesh.telemetry import metrics, tracing
from services.mesh.telemetry.outage_log import OutageLog

log = logging.getLogger(__name__)

MAX_DELIVERIES = 5
_IDLE_SECONDS = 5.0
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
        self._outage = OutageLog(log, f"consumer {name} waits for events")

    async def run(self) -> None:
        """Until cancelled; waits out every outage of NATS or the database."""
        identity.become(identity.Principal(f"service:{self._name}"))
        task = asyncio.current_task()
        assert task is not None
        while True:
            try:
                await self._consume()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                if task.cancelling():  # which the client, closed meanwhile, takes for its own doing
                    raise asyncio.CancelledError from error
                self._outage.failed(error)
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
        self._outage.over()
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
        type_ = message.subject.rpartition(".")[0]
        headers = message.headers or {}
        attributes = attributes_of("process", type_, headers.get("Nats-Msg-Id", ""))
        # A header of an earlier version of this platform, or of a person who publishes a dead event again, may lack it.
        parent = headers.get("traceparent", "")
        with tracing.span(f"process {type_}", tracing.SpanKind.CONSUMER, parent, attributes) as span:
            span.set_attribute("messaging.consumer.group.name", self._name)
            if error := await self._settle(message):
                tracing.fail(span, type(error).__name__)
                await self._refuse(context, message, error)
                return
            metrics.instruments().consumed_events.add(1, figure_of("process", type_))

    async def _settle(self, message: Msg) -> Exception | None:
        """Apply the event and acknowledge it. Returns why it cannot be applied."""
        while True:
            try:
                await self._apply(json.loads(message.data))
            except Unavailable:
                # Nobody's fault, so no delivery is spent on it: hold the message until the database is back.
                await message.in_progress()
                await asyncio.sleep(1)
            except Exception as error:
                return error
            else:
                await message.ack()
                return None

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
        counted = {"rlhf.event.consumer": self._name}
        if deliveries < MAX_DELIVERIES:
            metrics.instruments().failed_deliveries.add(1, counted)
            await message.nak(delay=2.0**deliveries / 10)
            return
        headers = {**(message.headers or {}), "Rlhf-Consumer": self._name, "Rlhf-Error": _header_value(repr(error))}
        headers["Nats-Msg-Id"] = f"{self._name}:{headers.get('Nats-Msg-Id', message.metadata.sequence.stream)}"
        await context.publish(f"{DEAD_PREFIX}.{self._name}", message.data, headers=headers)
        metrics.instruments().dead_letters.add(1, counted)
        await message.term()


def _header_value(text: str) -> str:
    """At most 500 ASCII characters on one line: what an exception says may be long, of many lines, and no UTF-8."""
    return " ".join(text.encode("ascii", "backslashreplace").decode().split())[:500]
