"""Figures that stand in tables: counted now and then by one process, told at each export."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import Unavailable
from services.mesh.telemetry import metrics
from services.mesh.telemetry.metrics import Observation

log = logging.getLogger(__name__)

SECONDS = 10.0
# What is counted in one transaction: figures by the attributes that tell them apart, by name.
Counts = Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]
Count = Callable[[Connection], Awaitable[Counts]]


class Gauges:
    """An async context manager: counts while it is entered, if this process exports figures at all.

    Only services hold one: each worker would tell the same rows once more.
    """

    def __init__(self, database: Database, *counts: Count) -> None:
        self._database = database
        self._counts = counts
        self._found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Gauges:
        if metrics.enabled():
            for name in metrics.OBSERVED:
                self._stack.enter_context(metrics.observed(name, partial(self._observe, name)))
            task = asyncio.create_task(self._count_forever(), name="census")
            self._stack.push_async_callback(asyncio.wait, {task})
            self._stack.callback(task.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _observe(self, name: str) -> Iterable[Observation]:
        for attributes, value in tuple(self._found.get(name, {}).items()):
            yield Observation(value, {**dict(attributes), "db.namespace": self._database.schema})

    async def _count_forever(self) -> None:
        while True:
            try:
                async with self._database.transaction() as connection:
                    for count in self._counts:
                        self._take(await count(connection))
            except Unavailable:
                self._found = {}  # nothing is better than what was true some time ago
            except Exception:
                log.exception("the census failed")
            await asyncio.sleep(SECONDS)

    def _take(self, counts: Counts) -> None:
        for name, found in counts.items():
            # What was there once and is gone is 0, not unknown.
            known = dict.fromkeys(self._found.get(name, {}), 0.0)
            self._found[name] = {**known, **found}


async def open_jobs(connection: Connection) -> Counts:
    """The queue of one service."""
    cursor = await connection.execute(
        "SELECT kind, state, count(*), extract(epoch FROM max(now() - greatest(create_time, not_before)))::float8"
        " FROM jobs WHERE end_time IS NULL GROUP BY kind, state"
    )
    rows = await cursor.fetchall()
    depth = {(("rlhf.job.kind", kind), ("rlhf.job.state", state)): float(count) for kind, state, count, _ in rows}
    oldest = {(("rlhf.job.kind", kind),): max(0.0, age) for kind, state, _, age in rows if state == "QUEUED"}
    return {"rlhf.job.open": depth, "rlhf.job.oldest_queued": oldest}


async def unpublished_events(connection: Connection) -> Counts:
    """What the relay has not brought to NATS yet."""
    cursor = await connection.execute("SELECT count(*) FROM events WHERE publish_time IS NULL")
    row = await cursor.fetchone()
    assert row is not None
    return {"rlhf.event.unpublished": {(): float(row[0])}}
