"""What runs report, as streams that replay from a cursor, follow, and end with the job."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from services.mesh import names
from services.mesh.db.postgres import Database
from services.mesh.errors import InvalidArgument
from services.mesh.jobs.resource import JobKind
from services.mesh.jobs.store import Jobs
from services.mesh.rpc.pagination import Page, PageRequest
from services.mesh.streams import store
from services.mesh.streams.broadcast import BATCH, Batch, Broadcasts, Source
from services.mesh.streams.model import LogLine, MetricPoint, Sample

T = TypeVar("T", MetricPoint, LogLine)

HEARTBEAT_SECONDS = 10.0


def series_topic(job_uid: UUID) -> str:
    """The notice that new points, lines or samples of a job send."""
    return f"series:{job_uid}"


class Series:
    """Use cases of the series that jobs of one kind report."""

    def __init__(self, database: Database, jobs: Jobs, kind: JobKind[Any]) -> None:
        self._database = database
        self._jobs = jobs
        self._pattern = kind.pattern
        self._feeds = Broadcasts(database, jobs)

    def metrics(
        self, name: str, after: int, wanted: Sequence[str], stored_only: bool
    ) -> AsyncIterator[Batch[MetricPoint]]:
        """Batches of at most 1000 points in order; an empty one is a heartbeat. `reward/*` wants a prefix."""
        exact = tuple(sorted({metric for metric in wanted if not metric.endswith("*")}))
        prefixes = tuple(sorted({metric[:-1] for metric in wanted if metric.endswith("*")}))

        def source(uid: UUID) -> Source[MetricPoint]:
            return Source(
                key=(uid, exact, prefixes),
                job_name=name,
                topic=series_topic(uid),
                read=lambda connection, ordinal: store.metrics_after(connection, uid, ordinal, exact, prefixes, BATCH),
                end=lambda connection: store.last_metric(connection, uid),
            )

        return self._follow(name, after, source, stored_only)

    def logs(self, name: str, after: int, stored_only: bool) -> AsyncIterator[Batch[LogLine]]:
        """Batches of at most 1000 lines in order; an empty one is a heartbeat."""

        def source(uid: UUID) -> Source[LogLine]:
            return Source(
                key=(uid, "logs"),
                job_name=name,
                topic=series_topic(uid),
                read=lambda connection, ordinal: store.logs_after(connection, uid, ordinal, BATCH),
                end=lambda connection: store.last_log(connection, uid),
            )

        return self._follow(name, after, source, stored_only)

    async def samples(self, name: str, step: int | None, split: str, page: PageRequest) -> Page[Sample]:
        """In the order they were stored."""
        names.parse(self._pattern, name, "parent")
        after = int(page.after[0]) if page.after else 0
        async with self._database.transaction() as connection:
            job = await self._jobs.get(connection, name)
            rows = await store.samples_after(connection, job.uid, after, step, split, page.size + 1)
        return page.page(rows, lambda sample: (sample.ordinal,))

    async def _follow(
        self, name: str, after: int, source_of: Callable[[UUID], Source[T]], stored_only: bool
    ) -> AsyncIterator[Batch[T]]:
        names.parse(self._pattern, name)
        if after < 0:
            raise InvalidArgument.of("after_ordinal", f"must not be negative (got {after})")
        async with self._database.transaction() as connection:
            source = source_of((await self._jobs.get(connection, name)).uid)
        batches = self._stored(source, after) if stored_only else self._feeds.follow(source, after, HEARTBEAT_SECONDS)
        async with contextlib.aclosing(batches):
            async for batch in batches:
                yield batch

    async def _stored(self, source: Source[T], after: int) -> AsyncGenerator[Batch[T], None]:
        while True:
            async with self._database.transaction() as connection:
                items = await source.read(connection, after)
            if not items:
                return
            yield Batch(after, items[-1].ordinal, items)
            after = items[-1].ordinal
