"""Following a run: its records and its output are read by byte offset and stored with the offsets in one transaction.

Whatever dies in between (this worker, the database, the service), each record takes effect once: what was stored moved
the offset, what was not is read again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from services.mesh.db.postgres import Database
from services.mesh.errors import Aborted
from services.mesh.jobs.model import Lease
from services.mesh.jobs.store import Jobs
from services.mesh.jobs.warnings import JobWarnings
from services.mesh.runs import positions, spans, spool
from services.mesh.runs.batch import (
    RecordHandler,
    RunBatch,
    store_series,
    take_lines,
    take_metrics,
    take_samples,
    warning,
)
from services.mesh.runs.files import OUTPUT_FILE, SPOOL_FILE
from services.mesh.runs.lag import Lag
from services.mesh.runs.positions import SpoolPosition
from services.mesh.runs.runners import Run
from services.mesh.streams.series import series_topic

READ_BYTES = 1 << 20
# How long after a look at the files that found nothing the next one comes: part of what a watcher waits for a point.
POLL_SECONDS = 0.02
# Storing takes at most one part in so many of the time, so that many busy runs share a machine in larger batches.
_REST_SHARE = 4
_REST_MAX_SECONDS = 0.1
_TAIL_BYTES = 1 << 16


class Advance(NamedTuple):
    """What one `advance` read: the run's End once it has come, whether there was anything, and records for handlers."""

    end: spool.End | None = None
    anything: bool = False
    handled: bool = False


@dataclass(frozen=True)
class Reading:
    """How a service's runs are read: what their spans belong to (`trainer.runner`), and handlers of its own records."""

    service: str
    handlers: Mapping[type[spool.Record], RecordHandler] = field(default_factory=dict)
    decoder: spool.Decoder = spool.DECODER


class Follower:
    """Reads one run on behalf of the holder of a lease."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        warnings: JobWarnings,
        reading: Reading,
        lease: Lease,
        run: Run,
        on_phase: Callable[[spool.Phase], None],
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._warnings = warnings
        self._reading = reading
        self._lease = lease
        self._run = run
        self._on_phase = on_phase
        self.lag = Lag(run.folder / SPOOL_FILE)
        # Up to where the run is stored; None where only the database knows.
        self._position: SpoolPosition | None = None
        # How the files stood when nothing new was in them.
        self._nothing_in: tuple[bool, int, int] | None = None
        self._rest_seconds = POLL_SECONDS

    async def rest(self) -> None:
        """Wait before the next `advance`; not at all while a backlog is worked off."""
        await asyncio.sleep(self._rest_seconds)

    async def advance(self) -> Advance:
        """Store what is new.

        Raises Aborted when the lease is lost, Unavailable when the database is.
        """
        began = time.monotonic()
        self._rest_seconds = POLL_SECONDS
        # Seen before they are read: whatever is written meanwhile is found the next time.
        files = (
            self._run.is_alive(),
            _size(self._run.folder / SPOOL_FILE),
            _size(self._run.folder / OUTPUT_FILE),
        )
        if files == self._nothing_in:
            return Advance()
        position = self._position or await self._stored_position()
        records, texts, after = await asyncio.to_thread(self._read, position, not files[0])
        if not records and not texts:
            self._position, self._nothing_in = position, files
            self.lag.stored(after.record_offset_bytes)
            return Advance()
        batch = RunBatch(after)
        for record in records:
            await self._take(record, batch)
        take_lines(texts, datetime.now(UTC), batch)
        # Should storing fail, the database knows whether it did.
        self._position = None
        await self._store(position, batch)
        self._position = batch.position
        self.lag.stored(batch.position.record_offset_bytes)
        for span in batch.spans:
            spans.export(span, self._reading.service)
        self._rest_seconds = 0 if _far(position, after) else _rest_after(time.monotonic() - began)
        return Advance(batch.end, anything=True, handled=bool(batch.taken))

    async def _stored_position(self) -> SpoolPosition:
        async with self._database.transaction() as connection:
            position = await positions.position(connection, self._lease.job.uid)
        assert position is not None, "an attempt begins with its position"
        return position

    def _read(self, position: SpoolPosition, to_the_end: bool) -> tuple[list[spool.Record], list[str], SpoolPosition]:
        """Records and lines of output from `position` on, and the position after them."""
        folder = self._run.folder
        begin, reader = position.record_offset_bytes, self._reading.decoder
        records, record_offset = spool.read_from(folder / SPOOL_FILE, begin, READ_BYTES, reader)
        texts, output_offset = _read_lines(folder / OUTPUT_FILE, position.output_offset_bytes, to_the_end)
        return records, texts, replace(position, record_offset_bytes=record_offset, output_offset_bytes=output_offset)

    def stored_end(self) -> spool.End | None:
        """The End of a run that was read to its end before."""
        path = self._run.folder / SPOOL_FILE
        size = path.stat().st_size if path.exists() else 0
        records, _ = spool.read_from(path, max(0, size - _TAIL_BYTES), _TAIL_BYTES, self._reading.decoder)
        return next((record for record in reversed(records) if isinstance(record, spool.End)), None)

    async def _take(self, record: spool.Record, batch: RunBatch) -> None:
        at = datetime.fromtimestamp(record.time_ns / 1e9, UTC)
        if isinstance(record, spool.Metrics):
            take_metrics(record, at, batch)
        elif isinstance(record, spool.Phase):
            self._on_phase(record)
            batch.progress["phase"] = record.phase
            # A run that does not know yet how far it has to go does not know how far it is, either.
            if record.total_steps:
                batch.progress |= {"step_count": record.step, "total_step_count": record.total_steps}
        elif isinstance(record, spool.SampleBatch):
            take_samples(record, at, batch)
        elif handler := self._reading.handlers.get(type(record)):
            # What is slow is done here, before the transaction.
            batch.taken.append((handler, await handler.take(self._lease.job, batch.position.attempt, record, at)))
        elif isinstance(record, spool.Software):
            batch.progress["software"] = record.versions
        elif isinstance(record, spool.Span):
            batch.spans.append(record)
        elif isinstance(record, spool.Problem):
            batch.warnings.append(warning(record, at, batch.position.attempt))
        elif isinstance(record, spool.End):
            batch.end = record

    async def _store(self, read_at: SpoolPosition, batch: RunBatch) -> None:
        uid = self._lease.job.uid
        async with self._database.transaction() as connection:
            job = await self._jobs.held(connection, self._lease)
            if await positions.position(connection, uid) != read_at:
                raise Aborted("SPOOL_MOVED", "somebody else has read on meanwhile", job=self._lease.job.name)
            await store_series(connection, uid, batch)
            for handler, taken in batch.taken:
                await handler.store(connection, job, taken)
            await self._warnings.add(connection, job, batch.warnings)
            await positions.set_position(connection, uid, batch.position)
            if batch.progress:
                await self._jobs.report(connection, self._lease, batch.progress)
            await self._database.notify(connection, series_topic(uid))


def _far(before: SpoolPosition, after: SpoolPosition) -> bool:
    """Whether so much was read that there may well be more."""
    records = after.record_offset_bytes - before.record_offset_bytes
    output = after.output_offset_bytes - before.output_offset_bytes
    return max(records, output) > READ_BYTES // 2


def _rest_after(storing_seconds: float) -> float:
    return min(max(POLL_SECONDS, _REST_SHARE * storing_seconds), _REST_MAX_SECONDS)


def _size(path: Path) -> int:
    """In bytes; a file that does not exist yet is an empty one."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_lines(path: Path, offset: int, to_the_end: bool) -> tuple[list[str], int]:
    """Complete lines from `offset` on, the incomplete last one too when nothing more will come."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(READ_BYTES)
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if not end and (to_the_end or len(data) == READ_BYTES):
        end = len(data)
    # A progress bar rewrites its line: what stood there last counts.
    lines = [line.rstrip(b"\r").rpartition(b"\r")[2] for line in data[:end].split(b"\n")]
    return [line.decode("utf-8", "replace") for line in lines if line.strip()], offset + end
