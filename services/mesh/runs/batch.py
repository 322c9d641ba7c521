"""What one reading of a run found, as rows of its job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from services.mesh.db.postgres import Connection
from services.mesh.jobs.model import Job, storable
from services.mesh.jobs.warnings import JobWarning, Severity
from services.mesh.runs import spool
from services.mesh.runs.positions import SpoolPosition
from services.mesh.streams import store as series
from services.mesh.streams.model import LogLine, MetricPoint, Sample

MAX_LINE_CHARACTERS = 8192


class RecordHandler(Protocol):
    """Takes in one kind of record that only its service knows, such as a checkpoint."""

    async def take(self, job: Job, attempt: int, record: Any, at: datetime, /) -> Any:
        """Do what is slow, such as copying files, and return what `store` needs. May be called again for a record."""
        ...

    async def store(self, connection: Connection, job: Job, taken: Any, /) -> None:
        """Store it, in the transaction that moves the run's position; the job's row is locked."""
        ...


@dataclass
class RunBatch:
    """What one reading found, ready to be stored."""

    position: SpoolPosition
    points: list[MetricPoint] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    # What handlers made of a service's own records, with the handler of each.
    taken: list[tuple[RecordHandler, Any]] = field(default_factory=list)
    warnings: list[JobWarning] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    spans: list[spool.Span] = field(default_factory=list)
    end: spool.End | None = None


async def store_series(connection: Connection, uid: Any, batch: RunBatch) -> None:
    if batch.points:
        await series.add_metrics(connection, uid, batch.points)
    if batch.lines:
        await series.add_logs(connection, uid, batch.lines)
    if batch.samples:
        await series.add_samples(connection, uid, batch.samples)


def warning(record: spool.Problem, at: datetime, attempt: int) -> JobWarning:
    return JobWarning(
        reason=record.reason,
        key=record.key,
        severity=Severity(record.severity.upper()),
        message=record.message,
        remedy=record.remedy,
        first_step=record.first_step or record.step,
        last_step=record.step,
        count=record.count,
        attempt=attempt,
        first_time=at,
        last_time=at,
    )


def take_metrics(record: spool.Metrics, at: datetime, batch: RunBatch) -> None:
    first = batch.position.metric_ordinal + 1
    for ordinal, (metric, value) in enumerate(record.values.items(), first):
        batch.points.append(MetricPoint(ordinal, batch.position.attempt, record.step, storable(metric), value, at))
    batch.position = replace(batch.position, metric_ordinal=first + len(record.values) - 1)


def take_samples(record: spool.SampleBatch, at: datetime, batch: RunBatch) -> None:
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


def take_lines(texts: Iterable[str], at: datetime, batch: RunBatch) -> None:
    for text in texts:
        batch.position = replace(batch.position, log_ordinal=batch.position.log_ordinal + 1)
        line = storable(text)[:MAX_LINE_CHARACTERS]
        batch.lines.append(LogLine(batch.position.log_ordinal, batch.position.attempt, line, at))
