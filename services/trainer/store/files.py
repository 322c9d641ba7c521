"""Rows of `deleted_files`, and whose folders on a worker's disk are still wanted."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.mesh.postgres import Connection

# The notice after which files of runs may be on a worker's disk that nobody needs.
FILES_TOPIC = "files"


async def jobs_of(connection: Connection, uids: Sequence[UUID]) -> set[UUID]:
    """Those of jobs that exist."""
    cursor = await connection.execute("SELECT uid FROM jobs WHERE uid = ANY(%s)", (list(uids),))
    return {row[0] async for row in cursor}


async def delete(connection: Connection, uid: UUID, path: str) -> None:
    """Have the worker that has it remove a folder of a job's."""
    await connection.execute("INSERT INTO deleted_files (job_uid, path) VALUES (%s, %s)", (uid, path))


async def deleted(connection: Connection, uids: Sequence[UUID]) -> list[tuple[UUID, str]]:
    """Of these jobs, whose folders are here."""
    query = "SELECT job_uid, path FROM deleted_files WHERE job_uid = ANY(%s)"
    return [(row[0], row[1]) async for row in await connection.execute(query, (list(uids),))]


async def forget(connection: Connection, uid: UUID, path: str) -> None:
    await connection.execute("DELETE FROM deleted_files WHERE job_uid = %s AND path = %s", (uid, path))
