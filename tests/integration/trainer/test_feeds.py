"""Many watchers of one series: each gets all of it once, in order, and the database is asked once for all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import NotFound
from services.mesh.jobs.model import Job, State
from services.mesh.jobs.store import Jobs
from services.mesh.streams import broadcast as feeds_module
from services.mesh.streams import store
from services.mesh.streams.broadcast import Batch, Broadcasts, Source
from services.mesh.streams.model import MetricPoint
from services.mesh.streams.series import series_topic
from tests.fix_member import PROJECT, until

HEARTBEAT_SECONDS = 0.02
_numbers = itertools.count(1)
WANTED = "reward/mean"
OTHER = "train/loss"


class Run:
    """A job whose points are written by the test; every third one is of the wanted metric."""

    def __init__(self, database: Database, jobs: Jobs, job: Job) -> None:
        self._database = database
        self._jobs = jobs
        self.job = job
        self.feeds = Broadcasts(database, jobs)
        self.written = 0
        self.reads = 0

    async def write(self, count: int) -> None:
        ordinals = range(self.written + 1, self.written + 1 + count)
        at = datetime.now(UTC)
        points = [MetricPoint(n, 1, n, WANTED if n % 3 == 0 else OTHER, float(n), at) for n in ordinals]
        async with self._database.transaction() as connection:
            await store.add_metrics(connection, self.job.uid, points)
            await self._database.notify(connection, series_topic(self.job.uid))
        self.written += count

    async def end(self) -> None:
        async with self._database.transaction() as connection:
            await self._jobs.move(connection, self.job, State.CANCELLED)

    def source(self, *exact: str) -> Source[MetricPoint]:
        uid = self.job.uid

        async def read(connection: Connection, ordinal: int) -> list[MetricPoint]:
            self.reads += 1
            return await store.metrics_after(connection, uid, ordinal, exact, (), feeds_module.BATCH)

        return Source(
            key=(uid, exact),
            job_name=self.job.name,
            topic=series_topic(uid),
            read=read,
            end=lambda connection: store.last_metric(connection, uid),
        )

    def expected(self, after: int, *exact: str) -> list[int]:
        return [n for n in range(after + 1, self.written + 1) if not exact or n % 3 == 0]


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Run]:
    database = Database(url, "testing_feeds")
    await database.migrate("services.mesh", "services.trainer")
    async with database:
        jobs = Jobs(database, _announce)
        async with database.transaction() as connection:
            name = f"{PROJECT}/trainingJobs/feed-{next(_numbers)}"
            job = await jobs.create(connection, "training", name, {})
        yield Run(database, jobs, job)


async def _announce(*_: Any) -> None:
    """Nobody listens to events here."""


class Watcher:
    """Reads one batch at a time, can be cut off, and comes back with its cursor."""

    def __init__(self, run: Run, after: int, exact: tuple[str, ...]) -> None:
        self._run = run
        self._exact = exact
        self.after = self.cursor = after
        self.got: list[int] = []
        self._batches = self._follow()

    def _follow(self) -> Any:
        return self._run.feeds.follow(self._run.source(*self._exact), self.cursor, HEARTBEAT_SECONDS)

    async def read(self) -> bool:
        """False after the last."""
        batch: Batch[MetricPoint] | None = await anext(self._batches, None)
        if batch is not None:
            self.got += [point.ordinal for point in batch.items]
            self.cursor = batch.through
        return batch is not None

    async def cut(self) -> None:
        await self._batches.aclose()
        self._batches = self._follow()

    async def drain(self) -> None:
        while await self.read():
            pass

    def check(self) -> None:
        assert self.got == self._run.expected(self.after, *self._exact)


JOIN = st.tuples(st.just("join"), st.integers(0, 40), st.sampled_from([(), (WANTED,)]))
WRITE = st.tuples(st.just("write"), st.integers(1, 9), st.none())
READ = st.tuples(st.just("read"), st.integers(0, 9), st.none())
CUT = st.tuples(st.just("cut"), st.integers(0, 9), st.none())


@given(steps=st.lists(st.one_of(JOIN, WRITE, READ, CUT), min_size=4, max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whenever_watchers_come_read_and_are_cut_off_each_gets_all_once(
    shared_url: str, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int, Any]]
) -> None:
    # Small, so that a watcher that does not read for a while has to go to the database, in more than one batch.
    monkeypatch.setattr(feeds_module, "KEPT_BATCHES", 2)
    monkeypatch.setattr(feeds_module, "BATCH", 5)

    async def play() -> None:
        async with opened(shared_url) as run:
            watchers: list[Watcher] = []
            for what, number, exact in steps:
                if what == "write":
                    await run.write(number)
                elif what == "join":
                    watchers.append(Watcher(run, number, exact))
                elif watchers:
                    watcher = watchers[number % len(watchers)]
                    await (watcher.read() if what == "read" else watcher.cut())
            await run.end()
            async with asyncio.timeout(30):
                await asyncio.gather(*(watcher.drain() for watcher in watchers))
            for watcher in watchers:
                watcher.check()

    asyncio.run(play())


async def test_who_has_caught_up_gets_the_very_batch_that_was_read_for_all(shared_url: str) -> None:
    async with opened(shared_url) as run:
        got: list[list[Batch[MetricPoint]]] = [[] for _ in range(20)]

        async def watch(mine: list[Batch[MetricPoint]]) -> None:
            async with contextlib.aclosing(run.feeds.follow(run.source(), 0, 60)) as batches:
                async for batch in batches:
                    mine.append(batch)

        async with asyncio.TaskGroup() as watchers:
            for mine in got:
                watchers.create_task(watch(mine))
            await run.write(3)
            await until(lambda: all(mine and mine[-1].through == 3 for mine in got))
            joined = run.reads
            for end in range(4, 10):
                await run.write(1)
                await until(lambda end=end: all(mine[-1].through == end for mine in got))
            await run.end()
        assert run.reads - joined == 6, "one read for twenty watchers"
        for shared in zip(*(mine[-6:] for mine in got), strict=True):
            assert len({id(batch) for batch in shared}) == 1
        assert [[p.ordinal for batch in mine for p in batch.items] for mine in got] == [run.expected(0)] * 20


async def test_what_is_kept_is_bounded(shared_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds_module, "KEPT_ITEMS", 10)
    async with opened(shared_url) as run:
        slow, quick = Watcher(run, 0, ()), Watcher(run, 0, ())
        await run.write(1)
        await slow.read()
        for _ in range(20):
            await run.write(3)
            while quick.cursor < run.written:
                await quick.read()
        feed = next(iter(run.feeds._open.values()))
        assert sum(len(batch.items) for batch in feed._kept) <= 10
        await run.end()
        await slow.drain()
        await quick.drain()
        slow.check()
        quick.check()


async def test_metrics_that_nobody_asked_for_move_the_cursor(shared_url: str) -> None:
    """Else each notice would search all that came since the last point of a rare metric."""
    async with opened(shared_url) as run:
        await run.write(2)
        watcher = Watcher(run, 0, (WANTED,))
        assert await watcher.read(), "a heartbeat"
        assert (watcher.got, watcher.cursor) == ([], 2)
        await run.end()
        await watcher.drain()


async def test_a_feed_that_nobody_watches_is_gone(shared_url: str) -> None:
    async with opened(shared_url) as run:
        first, second = Watcher(run, 0, ()), Watcher(run, 0, ())
        await first.read()
        await second.read()
        task = next(iter(run.feeds._open.values()))._task
        await first.cut()
        assert run.feeds._open
        await second.cut()
        assert not run.feeds._open
        assert task.cancelled()


async def test_a_job_that_vanishes_ends_every_stream_with_that_error(shared_url: str) -> None:
    async with opened(shared_url) as run:
        watchers = [Watcher(run, 0, ()), Watcher(run, 0, ())]
        for watcher in watchers:
            await watcher.read()
        async with run._database.transaction() as connection:
            await connection.execute("DELETE FROM jobs WHERE uid = %s", (run.job.uid,))
            await run._database.notify(connection, series_topic(run.job.uid))
        for watcher in watchers:
            with pytest.raises(NotFound):
                await watcher.drain()
        assert not run.feeds._open
        with pytest.raises(NotFound):
            await Watcher(run, 0, ()).read()
