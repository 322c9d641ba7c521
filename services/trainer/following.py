"""Following a run: its records and its output are read by byte offset and stored with the offsets in one transaction.

Whatever dies in between (this worker, the database, the service), each record takes effect once: what was stored moved
the offset, what was not is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.mesh.errors import Aborted
from services.mesh.job import Lease, storable
from services.mesh.jobs import Jobs
from services.mesh.postgres import Connection, Database
from services.trainer import plan as plans
from services.trainer import spool
from services.trainer.checkpoint_intake import CheckpointIntake
from services.trainer.entities import Checkpoint, LogLine, MetricPoint, Sample, SpoolPosition
from services.trainer.runners import Run
from services.trainer.runners.local import OUTPUT_FILE
from services.trainer.series import series_topic
from services.trainer.store import series as store

READ_BYTES = 1 << 20
MAX_LINE_CHARACTERS = 8192
_TAIL_BYTES = 1 << 16


@dataclass
class _Batch:
    """What one reading found, ready to be stored."""

    position: SpoolPosition
    points: list[MetricPoint] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    end: spool.End | None = None


class Follower:
    """Reads one run on behalf of the holder of a lease."""

    def __init__(self, database: Database, jobs: Jobs, intake: CheckpointIntake, lease: Lease, run: Run) -> None:
        self._database = database
        self._jobs = jobs
        self._intake = intake
        self._lease = lease
        self._run = run

    async def advance(self) -> tuple[spool.End | None, bool]:
        """Store what is new. Returns the run's End once it is read, and whether there was anything new.

        Raises Aborted when the lease is lost, Unavailable when the database is.
        """
        async with self._database.transaction() as connection:
            position = await store.position(connection, self._lease.job.uid)
        assert position is not None, "an attempt begins with its position"
        was_alive = self._run.is_alive()
        records, record_offset = await asyncio.to_thread(
            spool.read_from, self._run.folder / plans.SPOOL_FILE, position.record_offset_bytes, READ_BYTES
        )
        texts, output_offset = await asyncio.to_thread(
            _read_lines, self._run.folder / OUTPUT_FILE, position.output_offset_bytes, not was_alive
        )
        if not records and not texts:
            return None, False
        batch = _Batch(replace(position, record_offset_bytes=record_offset, output_offset_bytes=output_offset))
        for record in records:
            await self._take(record, batch)
        _take_lines(texts, datetime.now(UTC), batch)
        await self._store(position, batch)
        return batch.end, True

    def stored_end(self) -> spool.End | None:
        """The End of a run that was read to its end before."""
        path = self._run.folder / plans.SPOOL_FILE
        size = path.stat().st_size if path.exists() else 0
        records, _ = spool.read_from(path, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
        return next((record for record in reversed(records) if isinstance(record, spool.End)), None)

    async def _take(self, record: spool.Record, batch: _Batch) -> None:
        at = datetime.fromtimestamp(record.time_ns / 1e9, UTC)
        if isinstance(record, spool.Metrics):
            _take_metrics(record, at, batch)
        elif isinstance(record, spool.Phase):
            batch.progress |= {
                "phase": record.phase,
                "step_count": record.step,
                "total_step_count": record.total_steps,
            }
        elif isinstance(record, spool.SampleBatch):
            _take_samples(record, at, batch)
        elif isinstance(record, spool.Checkpoint):
            # Its files are copied and hashed here, before the transaction.
            batch.checkpoints.append(await self._intake.take(self._lease.job, batch.position.attempt, record, at))
        elif isinstance(record, spool.Problem):
            _take_lines([f"[{record.severity}] {record.message} {record.remedy}".rstrip()], at, batch)
        else:
            batch.end = record

    async def _store(self, read_at: SpoolPosition, batch: _Batch) -> None:
        uid = self._lease.job.uid
        async with self._database.transaction() as connection:
            await self._jobs.held(connection, self._lease)
            if await store.position(connection, uid) != read_at:
                raise Aborted("SPOOL_MOVED", "somebody else has read on meanwhile", job=self._lease.job.name)
            await _store_series(connection, uid, batch)
            for checkpoint in batch.checkpoints:
                await self._intake.store(connection, checkpoint)
            await store.set_position(connection, uid, batch.position)
            if batch.progress:
                await self._jobs.report(connection, self._lease, batch.progress)
            await self._database.notify(connection, series_topic(uid))


async def _store_series(connection: Connection, uid: Any, batch: _Batch) -> None:
    if batch.points:
        await store.add_metrics(connection, uid, batch.points)
    if batch.lines:
        await store.add_logs(connection, uid, batch.lines)
    if batch.samples:
        await store.add_samples(connection, uid, batch.samples)


def _take_metrics(record: spool.Metrics, at: datetime, batch: _Batch) -> None:
    first = batch.position.metric_ordinal + 1
    for ordinal, (metric, value) in enumerate(record.values.items(), first):
        batch.points.append(MetricPoint(ordinal, batch.position.attempt, record.step, storable(metric), value, at))
    batch.position = replace(batch.position, metric_ordinal=first + len(record.values) - 1)


def _take_samples(record: spool.SampleBatch, at: datetime, batch: _Batch) -> None:
    first = batch.position.sample_ordinal + 1
    for ordinal, sample in enumerate(record.samples, first):
        batch.samples.append(
            Sample(
                ordinal=ordinal,
                attempt=batch.position.attempt,
                split=record.split,
                step=record.step,
                row_index=sample.row_index,
                prompt=storable(sample.prompt),
                completion=storable(sample.completion),
                answer=storable(sample.expected or ""),
                score=sample.score,
                parts=sample.parts,
                observe_time=at,
            )
        )
    batch.position = replace(batch.position, sample_ordinal=first + len(record.samples) - 1)


def _take_lines(texts: Iterable[str], at: datetime, batch: _Batch) -> None:
    for text in texts:
        batch.position = replace(batch.position, log_ordinal=batch.position.log_ordinal + 1)
        line = storable(text)[:MAX_LINE_CHARACTERS]
        batch.lines.append(LogLine(batch.position.log_ordinal, batch.position.attempt, line, at))


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
