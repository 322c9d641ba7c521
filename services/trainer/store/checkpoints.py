"""Rows of `checkpoints`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.mesh.artifacts import references
from services.mesh.db.postgres import Connection
from services.mesh.rpc.pagination import PageRequest
from services.trainer.entities import Checkpoint, CheckpointState, TrainingStateState
from services.trainer.store import files

_COLUMNS = (
    "job_uid, step, name, attempt, kind, state, base_model, manifest_sha256, size_bytes, metrics, parents,"
    " training_state_path, training_state_sha256, create_time, state_reason, provenance, training_state, weights_path,"
    " files_kept"
)
# What stays when a checkpoint takes the place of another of its step.
_LASTING = ("job_uid", "step", "name", "create_time")


async def put(connection: Connection, checkpoint: Checkpoint) -> bool:
    """Insert, or replace the one of the same step: a later attempt, or the next state. Whether there was a change.

    What is READY stays so until another that is READY takes its place: an attempt that dies while it verifies the same
    step has taken nothing away. What could not be confirmed stays until the next of its step is judged. The weights
    that lose their place are let go.
    """
    replaced = await _many(
        connection,
        f"SELECT {_COLUMNS} FROM checkpoints WHERE job_uid = %s AND step = %s FOR UPDATE",
        (checkpoint.job_uid, checkpoint.step),
    )
    old = replaced[0] if replaced else None
    if old is not None and old.has_files:
        if checkpoint.state is CheckpointState.VERIFYING or (
            old.state is CheckpointState.READY and checkpoint.state is not CheckpointState.READY
        ):
            return False
        if old.manifest_sha256 != checkpoint.manifest_sha256:
            await references.drop(connection, checkpoint.name)
    columns = _COLUMNS.split(", ")
    new = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in _LASTING)
    query = (
        f"INSERT INTO checkpoints ({_COLUMNS}) VALUES ({', '.join(['%s'] * len(columns))})"
        f" ON CONFLICT (job_uid, step) DO UPDATE SET {new}"
    )
    row = vars(checkpoint) | {
        "state": str(checkpoint.state),
        "training_state": str(checkpoint.training_state),
        "metrics": Jsonb(checkpoint.metrics),
        "provenance": Jsonb(checkpoint.provenance),
    }
    await connection.execute(query.encode(), [row[name] for name in columns])
    return True


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
    """Those that were READY and still have their training state, highest step first."""
    return await _many(
        connection,
        f"SELECT {_COLUMNS} FROM checkpoints WHERE job_uid = %s AND training_state_path <> ''"
        " AND state IN ('READY', 'PRUNED')"
        " ORDER BY step DESC",
        (job_uid,),
    )


async def of_job(connection: Connection, job_uid: UUID, *, locked: bool = False) -> list[Checkpoint]:
    """All of a job, highest step first. `locked`: none of them can be held until the transaction ends."""
    lock = " FOR UPDATE" if locked else ""
    return await _many(
        connection, f"SELECT {_COLUMNS} FROM checkpoints WHERE job_uid = %s ORDER BY step DESC{lock}", (job_uid,)
    )


async def hold(connection: Connection, manifests: Mapping[str, str]) -> list[str]:
    """Keep these models and checkpoints, manifests by name, as they are until the transaction ends, for a row that
    names them to be written in it. Returns those that are not, or no longer, READY with that content."""
    held: set[tuple[str, str]] = set()
    for table in ("models", "checkpoints"):
        # In one order: two who want the same never wait for each other.
        query = f"SELECT name, manifest_sha256 FROM {table} WHERE name = ANY(%s) AND state = 'READY'"
        cursor = await connection.execute(f"{query} ORDER BY name FOR SHARE".encode(), (list(manifests),))
        held |= {(row[0], row[1]) async for row in cursor}
    return sorted(name for name, sha256 in manifests.items() if (name, sha256) not in held)


async def previous(connection: Connection, job_uid: UUID, step: int) -> str:
    """The name of the newest one before `step` that was READY; empty where there is none."""
    cursor = await connection.execute(
        "SELECT name FROM checkpoints WHERE job_uid = %s AND step < %s AND state IN ('READY', 'PRUNED')"
        " ORDER BY step DESC LIMIT 1",
        (job_uid, step),
    )
    row = await cursor.fetchone()
    return row[0] if row else ""


async def leave_ready(connection: Connection, name: str, state: CheckpointState, reason: str) -> Checkpoint | None:
    """A READY one in another state from now on; None when it was not READY."""
    rows = await _many(
        connection,
        "UPDATE checkpoints SET state = %s, state_reason = %s WHERE name = %s AND state = 'READY'"
        f" RETURNING {_COLUMNS}",
        (str(state), reason, name),
    )
    return rows[0] if rows else None


async def let_files_go(connection: Connection, name: str, why: str) -> None:
    """Of one that could not be confirmed; it is as CORRUPT as it was."""
    await connection.execute(
        "UPDATE checkpoints SET files_kept = false, state_reason = state_reason || %s WHERE name = %s AND files_kept",
        (f"; its files are gone: {why}", name),
    )


async def lock(connection: Connection, name: str) -> Checkpoint | None:
    """The checkpoint, which nobody comes to use until the transaction ends."""
    rows = await _many(connection, f"SELECT {_COLUMNS} FROM checkpoints WHERE name = %s FOR UPDATE", (name,))
    return rows[0] if rows else None


async def prune(connection: Connection, checkpoint: Checkpoint, reason: str, *, with_files: bool) -> Checkpoint:
    """READY or CORRUPT, it is PRUNED from now on; `with_files`: what its run left on a worker's disk goes, too."""
    pruned = replace(checkpoint, state=CheckpointState.PRUNED, files_kept=False)
    if checkpoint.state is not CheckpointState.PRUNED:
        pruned = replace(pruned, state_reason=reason)
    if with_files:
        for path in filter(None, (checkpoint.training_state_path, checkpoint.weights_path)):
            await files.delete(connection, checkpoint.job_uid, path)
        kept = checkpoint.training_state is TrainingStateState.KEPT
        state = TrainingStateState.PRUNED if kept else checkpoint.training_state
        pruned = replace(
            pruned, training_state=state, training_state_path="", training_state_sha256="", weights_path=""
        )
    await connection.execute(
        "UPDATE checkpoints SET state = %s, state_reason = %s, training_state = %s, training_state_path = %s,"
        " training_state_sha256 = %s, weights_path = %s, files_kept = false WHERE name = %s",
        (
            str(pruned.state),
            pruned.state_reason,
            str(pruned.training_state),
            pruned.training_state_path,
            pruned.training_state_sha256,
            pruned.weights_path,
            pruned.name,
        ),
    )
    return pruned


async def forget_weights_path(connection: Connection, job_uid: UUID, step: int) -> None:
    """The run's own copy of the weights is gone."""
    await connection.execute(
        "UPDATE checkpoints SET weights_path = '' WHERE job_uid = %s AND step = %s", (job_uid, step)
    )


async def drop_verifying(connection: Connection, job_uid: UUID) -> None:
    """Forget checkpoints that an attempt left unverified."""
    await connection.execute("DELETE FROM checkpoints WHERE job_uid = %s AND state = 'VERIFYING'", (job_uid,))


async def forget_training_states(connection: Connection, job_uid: UUID, keep: int) -> list[str]:
    """Clear all but the newest `keep` training states of READY ones; returns the paths that may be deleted.

    One that is CORRUPT itself counts for nothing, and has no path to begin with.
    """
    cursor = await connection.execute(
        "WITH kept AS (SELECT step FROM checkpoints WHERE job_uid = %(uid)s AND training_state_path <> ''"
        "  AND state IN ('READY', 'PRUNED') ORDER BY step DESC LIMIT %(keep)s),"
        " old AS (SELECT step, training_state_path FROM checkpoints WHERE job_uid = %(uid)s"
        "  AND training_state_path <> '' AND state <> 'VERIFYING' AND step NOT IN (SELECT step FROM kept))"
        " UPDATE checkpoints SET training_state = 'PRUNED', training_state_path = '', training_state_sha256 = ''"
        " FROM old WHERE checkpoints.job_uid = %(uid)s AND checkpoints.step = old.step"
        " RETURNING old.training_state_path",
        {"uid": job_uid, "keep": keep},
    )
    return [row[0] async for row in cursor]


async def spoil_training_state(connection: Connection, job_uid: UUID, step: int) -> None:
    """Mark a training state that no longer is what was saved."""
    await connection.execute(
        "UPDATE checkpoints SET training_state = 'CORRUPT', training_state_path = '', training_state_sha256 = ''"
        " WHERE job_uid = %s AND step = %s",
        (job_uid, step),
    )


async def by_state(connection: Connection) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """How many there are; a figure of the census."""
    cursor = await connection.execute("SELECT state, count(*) FROM checkpoints GROUP BY state")
    return {"rlhf.checkpoint.count": {(("rlhf.checkpoint.state", state),): float(n) async for state, n in cursor}}


async def _many(connection: Connection, query: str, parameters: tuple[Any, ...]) -> list[Checkpoint]:
    async with connection.cursor(row_factory=class_row(Checkpoint)) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchall()
