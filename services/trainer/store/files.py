"""Rows of `deleted_files`: what workers are to remove from their disks. Nothing else is removed there."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.mesh.db.postgres import Connection

# The notice after which files of runs may be on a worker's disk that nobody needs.
FILES_TOPIC = "files"


async def delete(connection: Connection, uid: UUID, path: str) -> None:
    """Have the worker that has it remove a folder of a job's."""
    await connection.execute("INSERT INTO deleted_files (job_uid, path) VALUES (%s, %s)", (uid, path))


async def delete_all(connection: Connection, uid: UUID) -> None:
    """Have every worker that has one remove the folder of a job: a row with an empty path, which stays."""
    await connection.execute("DELETE FROM deleted_files WHERE job_uid = %s", (uid,))
    await delete(connection, uid, "")


async def deleted(connection: Connection, uids: Sequence[UUID]) -> list[tuple[UUID, str]]:
    """Of these jobs, whose folders are here; an empty path is all of a job's folder."""
    query = "SELECT job_uid, path FROM deleted_files WHERE job_uid = ANY(%s)"
    return [(row[0], row[1]) async for row in await connection.execute(query, (list(uids),))]


async def forget(connection: Connection, uid: UUID, path: str) -> None:
    await connection.execute("DELETE FROM deleted_files WHERE job_uid = %s AND path = %s", (uid, path))
