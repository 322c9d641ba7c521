"""Series shared out: what a job's watchers wait for is read from the database once, however many they are.

A feed stands at the end of one series of a job. Each notice makes it read what is new and keep it among the last few
batches; watchers take the same batch objects from there. One that is further back, because it has only come or is slow,
reads the database by its cursor until it has caught up. So nothing is queued for anybody, and memory is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.mesh.db.postgres import Connection, Database
from services.mesh.jobs.store import TERMINAL, Jobs, job_topic

BATCH = 1000
# What a feed keeps for watchers that are a little behind.
KEPT_BATCHES = 32
KEPT_ITEMS = 4 * BATCH


class Numbered(Protocol):
    @property
    def ordinal(self) -> int: ...


T = TypeVar("T", bound=Numbered)


@dataclass(frozen=True, eq=False)
class Batch(Generic[T]):
    """All of a series from after the ordinal `after` up to `through`, in order. The same object goes to many watchers.

    Not every ordinal need be there: others may be those of metrics that nobody asked for.
    """

    after: int
    through: int
    items: Sequence[T]

    def rest(self, after: int) -> Batch[T]:
        """What of it comes after `after`."""
        if after <= self.after:
            return self
        return Batch(after, self.through, [item for item in self.items if item.ordinal > after])


@dataclass(frozen=True)
class Source(Generic[T]):
    """A series of one job. `key` tells it from the job's others, `topic` is the notice that new items send.

    `read` gives at most BATCH items after an ordinal, `end` the highest ordinal that is stored.
    """

    key: Hashable
    job_name: str
    topic: str
    read: Callable[[Connection, int], Awaitable[list[T]]]
    end: Callable[[Connection], Awaitable[int]]


class Broadcasts:
    """The feeds that have watchers."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._jobs = jobs
        self._open: dict[Hashable, Broadcast] = {}

    async def follow(self, source: Source[T], after: int, heartbeat_seconds: float) -> AsyncGenerator[Batch[T], None]:
        """Everything after the ordinal `after` until the job is over; an empty batch is a heartbeat."""
        async with self._joined(source) as feed:
            while (batch := await feed.after(after, heartbeat_seconds)) is not None:
                if batch.items or batch.through == after:
                    yield batch
                after = batch.through

    @contextlib.asynccontextmanager
    async def _joined(self, source: Source[T]) -> AsyncIterator[Broadcast[T]]:
        """The feed of `source`, which lives as long as anybody is inside. Raises NotFound, Unavailable."""
        feed = self._open.get(source.key)
        if feed is None:
            feed = self._open[source.key] = Broadcast(self._database, self._jobs, source)
        feed.watchers += 1
        try:
            await feed.started()
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers or feed.failed:
                if self._open.get(source.key) is feed:
                    del self._open[source.key]
                if not feed.watchers:
                    await feed.stop()


class Broadcast(Generic[T]):
    """One series from where it ended when the first watcher came."""

    def __init__(self, database: Database, jobs: Jobs, source: Source[T]) -> None:
        self._database = database
        self._jobs = jobs
        self._source = source
        self._kept: deque[Batch[T]] = deque(maxlen=KEPT_BATCHES)
        self._end = 0
        self._over = False
        self._started = asyncio.Event()
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._follow(), name=f"feed of {source.job_name}")
        self._task.add_done_callback(lambda _: self._wake())
        self.watchers = 0

    @property
    def failed(self) -> bool:
        return self._task.done() and not self._over

    async def started(self) -> None:
        """Wait until it knows where the series ends."""
        await self._started.wait()
        self._raise()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def after(self, ordinal: int, patience_seconds: float) -> Batch[T] | None:
        """What follows `ordinal`; None when the job is over and nothing does. Empty when the patience was for nothing.

        Raises NotFound, Unavailable.
        """
        while True:
            moved = self._moved
            self._raise()
            if ordinal < self._end:
                return self._from_kept(ordinal) or await self._from_database(ordinal)
            if self._over:
                return None
            try:
                async with asyncio.timeout(patience_seconds):
                    await moved.wait()
            except TimeoutError:
                return Batch(ordinal, ordinal, [])

    def _from_kept(self, ordinal: int) -> Batch[T] | None:
        """None when what follows is no longer kept."""
        found: Batch[T] | None = None
        for batch in reversed(self._kept):
            if batch.through <= ordinal:
                break
            found = batch
        return found.rest(ordinal) if found is not None and found.after <= ordinal else None

    async def _from_database(self, ordinal: int) -> Batch[T]:
        end = self._end
        async with self._database.transaction() as connection:
            return _batch(ordinal, end, await self._source.read(connection, ordinal))

    async def _follow(self) -> None:
        topics = (job_topic(self._source.job_name), self._source.topic)
        with self._database.notices.subscribe(*topics) as written:
            async with self._database.transaction() as connection:
                await self._jobs.get(connection, self._source.job_name)
                self._end = await self._source.end(connection)
            self._started.set()
            while not self._over:
                written.clear()
                if not await self._read():
                    await written.wait()

    async def _read(self) -> bool:
        """Take in what is new. False when nothing is, and more may come."""
        async with self._database.transaction() as connection:
            # The job is read first: once it has ended, nothing comes after what is read next.
            job = await self._jobs.get(connection, self._source.job_name)
            end = await self._source.end(connection)
            items = await self._source.read(connection, self._end) if end > self._end else []
        if end > self._end:
            self._keep(_batch(self._end, end, items))
        elif job.state in TERMINAL:
            self._over = True
        else:
            return False
        self._wake()
        return True

    def _keep(self, batch: Batch[T]) -> None:
        self._kept.append(batch)
        while sum(len(kept.items) for kept in self._kept) > KEPT_ITEMS:
            self._kept.popleft()
        self._end = batch.through

    def _wake(self) -> None:
        self._started.set()
        self._moved.set()
        self._moved = asyncio.Event()

    def _raise(self) -> None:
        if self._task.done() and not self._over:
            self._task.result()


def _batch(after: int, end: int, items: list[T]) -> Batch[T]:
    """What was read after `after` when all up to `end` was there to be read."""
    full = len(items) >= BATCH
    return Batch(after, items[-1].ordinal if full else max([end, *(item.ordinal for item in items[-1:])]), items)
