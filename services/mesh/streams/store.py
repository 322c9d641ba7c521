"""Rows of `metric_points`, `log_lines` and `samples`: what runs report, in the order it was read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.mesh.db.postgres import Connection
from services.mesh.streams.model import LogLine, MetricPoint, Sample

# Rows of each series that one transaction deletes.
DELETED_AT_ONCE = 20_000
_TABLES = ("metric_points", "log_lines", "samples")


async def add_metrics(connection: Connection, job_uid: UUID, points: Iterable[MetricPoint]) -> None:
    copy = (
        "COPY metric_points (job_uid, ordinal, attempt, step, metric, value, observe_time) FROM STDIN (FORMAT BINARY)"
    )
    async with connection.cursor() as cursor, cursor.copy(copy) as rows:
        rows.set_types(["uuid", "int8", "int4", "int8", "text", "float8", "timestamptz"])
        for p in points:
            await rows.write_row((job_uid, p.ordinal, p.attempt, p.step, p.metric, p.value, p.observe_time))


async def add_logs(connection: Connection, job_uid: UUID, lines: Iterable[LogLine]) -> None:
    copy = "COPY log_lines (job_uid, ordinal, attempt, text, observe_time) FROM STDIN"
    async with connection.cursor() as cursor, cursor.copy(copy) as rows:
        for line in lines:
            await rows.write_row((job_uid, line.ordinal, line.attempt, line.text, line.observe_time))


async def add_samples(connection: Connection, job_uid: UUID, samples: Iterable[Sample]) -> None:
    copy = (
        "COPY samples (job_uid, ordinal, attempt, split, step, row_index, prompt, completion, answer, score, parts,"
        " observe_time) FROM STDIN"
    )
    async with connection.cursor() as cursor, cursor.copy(copy) as rows:
        for s in samples:
            head = (job_uid, s.ordinal, s.attempt, s.split, s.step, s.row_index, s.prompt, s.completion, s.answer)
            await rows.write_row((*head, s.score, Jsonb(s.parts), s.observe_time))


async def metrics_after(
    connection: Connection, job_uid: UUID, ordinal: int, exact: Sequence[str], prefixes: Sequence[str], limit: int
) -> list[MetricPoint]:
    """In order. `exact` and `prefixes` choose metrics; both empty choose all."""
    async with connection.cursor(row_factory=class_row(MetricPoint)) as cursor:
        await cursor.execute(
            "SELECT ordinal, attempt, step, metric, value, observe_time FROM metric_points"
            " WHERE job_uid = %(uid)s AND ordinal > %(after)s AND (%(all)s OR metric = ANY(%(exact)s)"
            "  OR EXISTS (SELECT FROM unnest(%(prefixes)s::text[]) AS p WHERE starts_with(metric, p)))"
            " ORDER BY ordinal LIMIT %(limit)s",
            {
                "uid": job_uid,
                "after": ordinal,
                "all": not exact and not prefixes,
                "exact": list(exact),
                "prefixes": list(prefixes),
                "limit": limit,
            },
        )
        return await cursor.fetchall()


async def last_metric(connection: Connection, job_uid: UUID) -> int:
    """The highest ordinal; 0 where there is none."""
    return await _last(connection, "metric_points", job_uid)


async def last_log(connection: Connection, job_uid: UUID) -> int:
    """The highest ordinal; 0 where there is none."""
    return await _last(connection, "log_lines", job_uid)


async def last(connection: Connection, job_uid: UUID) -> int:
    """The highest ordinal of all series; 0 where there is none."""
    return max([await _last(connection, table, job_uid) for table in _TABLES])


async def delete(connection: Connection, job_uid: UUID, after: int) -> None:
    """The next DELETED_AT_ONCE ordinals of every series."""
    for table in _TABLES:
        await connection.execute(
            f"DELETE FROM {table} WHERE job_uid = %s AND ordinal > %s AND ordinal <= %s".encode(),
            (job_uid, after, after + DELETED_AT_ONCE),
        )


async def _last(connection: Connection, table: str, job_uid: UUID) -> int:
    query = f"SELECT coalesce(max(ordinal), 0) FROM {table} WHERE job_uid = %s"
    row = await (await connection.execute(query.encode(), (job_uid,))).fetchone()
    assert row is not None
    return row[0]


async def logs_after(connection: Connection, job_uid: UUID, ordinal: int, limit: int) -> list[LogLine]:
    async with connection.cursor(row_factory=class_row(LogLine)) as cursor:
        await cursor.execute(
            "SELECT ordinal, attempt, text, observe_time FROM log_lines WHERE job_uid = %s AND ordinal > %s"
            " ORDER BY ordinal LIMIT %s",
            (job_uid, ordinal, limit),
        )
        return await cursor.fetchall()


async def samples_after(
    connection: Connection, job_uid: UUID, ordinal: int, step: int | None, split: str, limit: int
) -> list[Sample]:
    async with connection.cursor(row_factory=class_row(Sample)) as cursor:
        await cursor.execute(
            "SELECT ordinal, attempt, split, step, row_index, prompt, completion, answer, score, parts, observe_time"
            " FROM samples WHERE job_uid = %s AND ordinal > %s AND (%s::bigint IS NULL OR step = %s)"
            " AND (%s = '' OR split = %s) ORDER BY ordinal LIMIT %s",
            (job_uid, ordinal, step, step, split, split, limit),
        )
        return await cursor.fetchall()
