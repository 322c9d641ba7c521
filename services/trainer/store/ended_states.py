"""Training states of jobs that have ended before their last step, kept so that a new job can go on from them."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from services.mesh.db.postgres import Connection


async def kept(connection: Connection, jobs: int) -> dict[str, str]:
    """Paths by the name of the checkpoint: the newest of each of the `jobs` cancelled or failed jobs that ended last,
    and those that a job which has not ended goes on from."""
    cursor = await connection.execute(
        "WITH newest AS (SELECT DISTINCT ON (job_uid) checkpoints.name, training_state_path, end_time"
        "  FROM checkpoints JOIN jobs ON jobs.uid = job_uid"
        "  WHERE end_time IS NOT NULL AND jobs.state IN ('CANCELLED', 'FAILED') AND training_state_path <> ''"
        "  AND checkpoints.state IN ('READY', 'PRUNED') ORDER BY job_uid, step DESC)"
        " (SELECT name, training_state_path FROM newest ORDER BY end_time DESC, name LIMIT %s)"
        " UNION SELECT checkpoints.name, training_state_path FROM checkpoints"
        "  JOIN jobs ON jobs.spec->>'resume_from' = checkpoints.name"
        "  WHERE jobs.end_time IS NULL AND training_state_path <> ''",
        (jobs,),
    )
    return {row[0]: row[1] async for row in cursor}


async def left_over(connection: Connection, but: Collection[str]) -> list[UUID]:
    """Jobs that have ended and still have files of a run, others than the training states of the checkpoints `but`:
    of one that failed outside its run, for example."""
    cursor = await connection.execute(
        "SELECT DISTINCT job_uid FROM checkpoints JOIN jobs ON jobs.uid = job_uid WHERE end_time IS NOT NULL"
        " AND (weights_path <> '' OR (training_state_path <> '' AND checkpoints.name <> ALL(%s)))",
        (list(but),),
    )
    return [row[0] async for row in cursor]


async def forget_files(connection: Connection, job_uid: UUID, but: Collection[str]) -> None:
    """What an ended job's run had on its disk is gone, but for the training states of the checkpoints `but`."""
    await connection.execute(
        "UPDATE checkpoints SET weights_path = '' WHERE job_uid = %s",
        (job_uid,),
    )
    await connection.execute(
        "UPDATE checkpoints SET training_state_path = '', training_state_sha256 = '',"
        " training_state = CASE WHEN training_state = 'KEPT' THEN 'PRUNED' ELSE training_state END"
        " WHERE job_uid = %s AND name <> ALL(%s)",
        (job_uid, list(but)),
    )
