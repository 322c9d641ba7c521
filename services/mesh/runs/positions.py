"""Rows of `spools`: how far each run has been read."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from services.mesh.db.postgres import Connection

_POSITION = "attempt, record_offset_bytes, output_offset_bytes, metric_ordinal, log_ordinal, sample_ordinal"


@dataclass(frozen=True)
class SpoolPosition:
    """How far a run has been read, in bytes, and the last ordinals that were given out."""

    attempt: int
    record_offset_bytes: int = 0
    output_offset_bytes: int = 0
    metric_ordinal: int = 0
    log_ordinal: int = 0
    sample_ordinal: int = 0


async def position(connection: Connection, job_uid: UUID) -> SpoolPosition | None:
    """How far the job's run has been read; the row is locked until the transaction ends."""
    async with connection.cursor(row_factory=class_row(SpoolPosition)) as cursor:
        await cursor.execute(f"SELECT {_POSITION} FROM spools WHERE job_uid = %s FOR UPDATE".encode(), (job_uid,))
        return await cursor.fetchone()


async def set_position(connection: Connection, job_uid: UUID, at: SpoolPosition) -> None:
    await connection.execute(
        f"INSERT INTO spools (job_uid, {_POSITION}) VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (job_uid) DO UPDATE SET attempt = excluded.attempt,"
        " record_offset_bytes = excluded.record_offset_bytes, output_offset_bytes = excluded.output_offset_bytes,"
        " metric_ordinal = excluded.metric_ordinal, log_ordinal = excluded.log_ordinal,"
        " sample_ordinal = excluded.sample_ordinal",
        (
            job_uid,
            at.attempt,
            at.record_offset_bytes,
            at.output_offset_bytes,
            at.metric_ordinal,
            at.log_ordinal,
            at.sample_ordinal,
        ),
    )
