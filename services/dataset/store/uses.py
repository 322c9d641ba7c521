"""Rows of `uses`."""

from __future__ import annotations

from collections.abc import Iterable

from services.mesh.db.postgres import Connection


async def put(
    connection: Connection, training_job: str, datasets: Iterable[str], *, sequence: int, ended: bool
) -> None:
    """What a job reads and whether it has ended, unless something newer is known."""
    for dataset in datasets:
        await connection.execute(
            "INSERT INTO uses (dataset, training_job, sequence, ended) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (dataset, training_job) DO UPDATE SET sequence = excluded.sequence, ended = excluded.ended"
            " WHERE uses.sequence < excluded.sequence",
            (dataset, training_job, sequence, ended),
        )


async def running(connection: Connection, dataset: str, limit: int) -> list[str]:
    """Names of some jobs that read it and have not ended."""
    cursor = await connection.execute(
        "SELECT training_job FROM uses WHERE dataset = %s AND NOT ended ORDER BY training_job LIMIT %s",
        (dataset, limit),
    )
    return [row[0] async for row in cursor]
