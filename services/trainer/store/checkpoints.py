"""Rows of `checkpoints`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.mesh.pages import PageRequest
from services.mesh.postgres import Connection
from services.trainer.entities import Checkpoint

_COLUMNS = (
    "job_uid, step, name, attempt, kind, state, base_model, manifest_sha256, size_bytes, metrics, parents,"
    " training_state_path, training_state_sha256, create_time"
)


async def put(connection: Connection, checkpoint: Checkpoint) -> None:
    """Insert, or replace the one of the same step: a later attempt, or the next state."""
    await connection.execute(
        f"INSERT INTO checkpoints ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (job_uid, step) DO UPDATE SET attempt = excluded.attempt, kind = excluded.kind,"
        " state = excluded.state, manifest_sha256 = excluded.manifest_sha256, size_bytes = excluded.size_bytes,"
        " metrics = excluded.metrics, training_state_path = excluded.training_state_path,"
        " training_state_sha256 = excluded.training_state_sha256",
        (
            checkpoint.job_uid,
            checkpoint.step,
            checkpoint.name,
            checkpoint.attempt,
            checkpoint.kind,
            str(checkpoint.state),
            checkpoint.base_model,
            checkpoint.manifest_sha256,
            checkpoint.size_bytes,
            Jsonb(checkpoint.metrics),
            checkpoint.parents,
            checkpoint.training_state_path,
            checkpoint.training_state_sha256,
            checkpoint.create_time,
        ),
    )


async def get(connection: Connection, name: str) -> Checkpoint | None:
    rows = await _many(connection, f"SELECT {_COLUMNS} FROM checkpoints WHERE name = %s", (name,))
    return rows[0] if rows else None


async def list_(connection: Connection, job_name: str, page: PageRequest) -> list[Checkpoint]:
    """Highest step first, one more than the page holds."""
    before = page.after[0] if page.after else None
    return await _many(
        connection,
        f"SELECT {_COLUMNS} FROM checkpoints WHERE job_uid = (SELECT uid FROM jobs WHERE name = %s)"
        " AND (%s::bigint IS NULL OR step < %s) ORDER BY step DESC LIMIT %s",
        (job_name, before, before, page.size + 1),
    )


async def resumable(connection: Connection, job_uid: UUID) -> list[Checkpoint]:
    """READY ones that still have their training state, highest step first."""
    return await _many(
        connection,
        f"SELECT {_COLUMNS} FROM checkpoints WHERE job_uid = %s AND state = 'READY' AND training_state_path <> ''"
        " ORDER BY step DESC",
        (job_uid,),
    )


async def drop_verifying(connection: Connection, job_uid: UUID) -> None:
    """Forget checkpoints that an attempt left unverified."""
    await connection.execute("DELETE FROM checkpoints WHERE job_uid = %s AND state = 'VERIFYING'", (job_uid,))


async def forget_training_states(connection: Connection, job_uid: UUID, keep: int) -> list[str]:
    """Clear all but the newest `keep` training states; returns the paths that may be deleted."""
    cursor = await connection.execute(
        "WITH old AS (SELECT step, training_state_path FROM checkpoints WHERE job_uid = %(uid)s"
        "  AND training_state_path <> '' AND state <> 'VERIFYING' ORDER BY step DESC OFFSET %(keep)s)"
        " UPDATE checkpoints SET training_state_path = '', training_state_sha256 = '' FROM old"
        " WHERE checkpoints.job_uid = %(uid)s AND checkpoints.step = old.step RETURNING old.training_state_path",
        {"uid": job_uid, "keep": keep},
    )
    return [row[0] async for row in cursor]


async def by_state(connection: Connection) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """How many there are; a figure of the census."""
    cursor = await connection.execute("SELECT state, count(*) FROM checkpoints GROUP BY state")
    return {"rlhf.checkpoint.count": {(("rlhf.checkpoint.state", state),): float(n) async for state, n in cursor}}


async def _many(connection: Connection, query: str, parameters: tuple[Any, ...]) -> list[Checkpoint]:
    async with connection.cursor(row_factory=class_row(Checkpoint)) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchall()
