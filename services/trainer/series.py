"""What runs report, as streams that replay from a cursor, follow, and end with the job."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar
from uuid import UUID

from services.mesh import names
from services.mesh.errors import InvalidArgument
from services.mesh.jobs import TERMINAL, Job, Jobs, job_topic
from services.mesh.pages import Page, PageRequest
from services.mesh.postgres import Connection, Database, wait
from services.trainer.entities import LogLine, MetricPoint, Sample
from services.trainer.store import series as store

T = TypeVar("T", MetricPoint, LogLine)

BATCH = 1000
HEARTBEAT_SECONDS = 10.0


def series_topic(job_uid: UUID) -> str:
    """The notice that new points, lines or samples of a job send."""
    return f"series:{job_uid}"


class Series:
    """Use cases."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs

    def metrics(
        self, name: str, after: int, wanted: Sequence[str], stored_only: bool
    ) -> AsyncIterator[list[MetricPoint]]:
        """Batches of at most 1000 points in order; an empty batch is a heartbeat. `reward/*` wants a prefix."""
        exact = [metric for metric in wanted if not metric.endswith("*")]
        prefixes = [metric[:-1] for metric in wanted if metric.endswith("*")]

        async def read(connection: Connection, job: Job, ordinal: int) -> list[MetricPoint]:
            return await store.metrics_after(connection, job.uid, ordinal, exact, prefixes, BATCH)

        return self._follow(name, after, read, stored_only)

    def logs(self, name: str, after: int, stored_only: bool) -> AsyncIterator[list[LogLine]]:
        """Batches of at most 1000 lines in order; an empty batch is a heartbeat."""

        async def read(connection: Connection, job: Job, ordinal: int) -> list[LogLine]:
            return await store.logs_after(connection, job.uid, ordinal, BATCH)

        return self._follow(name, after, read, stored_only)

    async def samples(self, name: str, step: int | None, split: str, page: PageRequest) -> Page[Sample]:
        """In the order they were stored."""
        names.parse(names.TRAINING_JOB, name, "parent")
        after = int(page.after[0]) if page.after else 0
        async with self._database.transaction() as connection:
            job = await self._jobs.get(connection, name)
            rows = await store.samples_after(connection, job.uid, after, step, split, page.size + 1)
        return page.page(rows, lambda sample: (sample.ordinal,))

    async def _follow(
        self, name: str, after: int, read: Callable[[Connection, Job, int], Awaitable[list[T]]], stored_only: bool
    ) -> AsyncIterator[list[T]]:
        names.parse(names.TRAINING_JOB, name)
        if after < 0:
            raise InvalidArgument.of("after_ordinal", f"must not be negative (got {after})")
        async with self._database.transaction() as connection:
            topics = (job_topic(name), series_topic((await self._jobs.get(connection, name)).uid))
        with self._database.notices.subscribe(*topics) as written:
            while True:
                async with self._database.transaction() as connection:
                    # The job is read first: once it has ended, nothing comes after what is read next.
                    job = await self._jobs.get(connection, name)
                    items = await read(connection, job, after)
                if items:
                    after = items[-1].ordinal
                    yield items
                elif stored_only or job.state in TERMINAL:
                    return
                elif not await wait(written, HEARTBEAT_SECONDS):
                    yield []
