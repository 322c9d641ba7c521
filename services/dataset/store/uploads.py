"""Rows of `uploads`, each with the validation job that bears its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.dataset.entities import Upload
from services.dataset.store import before_uid
from services.mesh.db.postgres import Connection
from services.mesh.errors import NotFound
from services.mesh.rpc.pagination import PageRequest

_SELECT = (
    "SELECT u.uid, u.name, u.dataset_uid, u.file_name, u.size_bytes, u.sha256, u.options, u.dataset_version,"
    " u.split_dataset_version, u.report, u.create_time, u.expire_time,"
    " j.state AS job_state, j.progress AS job_progress, j.error AS job_error"
    " FROM uploads u LEFT JOIN jobs j ON j.name = u.name"
)


async def announce(
    connection: Connection,
    uid: UUID,
    name: str,
    dataset_uid: UUID,
    *,
    file_name: str,
    size_bytes: int,
    sha256: str,
    options: dict[str, Any],
    expiry_seconds: float,
) -> Upload:
    """A new upload, or the one of the same file that is still receiving, which then has its full time again, and the
    options of this call."""
    cursor = await connection.execute(
        "INSERT INTO uploads (uid, name, dataset_uid, file_name, size_bytes, sha256, options, expire_time)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, now() + make_interval(secs => %s))"
        " ON CONFLICT (dataset_uid, sha256, size_bytes, file_name) WHERE NOT committed"
        " DO UPDATE SET expire_time = excluded.expire_time, options = excluded.options RETURNING name",
        (uid, name, dataset_uid, file_name, size_bytes, sha256, Jsonb(options), expiry_seconds),
    )
    row = await cursor.fetchone()
    assert row is not None
    return await get(connection, row[0])


async def get(connection: Connection, name: str) -> Upload:
    """Raises NotFound."""
    return _found(await _one(connection, f"{_SELECT} WHERE u.name = %s", name), name)


async def lock(connection: Connection, name: str) -> Upload:
    """The upload, which nobody else commits or deletes until this transaction ends. Raises NotFound."""
    # Row locks on one side of an outer join re-read only that side: lock first, so that the job is read after it.
    await connection.execute("SELECT uid FROM uploads WHERE name = %s FOR UPDATE", (name,))
    return await get(connection, name)


async def list_(connection: Connection, dataset_uid: UUID, page: PageRequest) -> list[Upload]:
    """Newest first, one more than the page holds."""
    before = before_uid(page)
    async with connection.cursor(row_factory=class_row(Upload)) as cursor:
        await cursor.execute(
            f"{_SELECT} WHERE u.dataset_uid = %s AND (%s::uuid IS NULL OR u.uid < %s) ORDER BY u.uid DESC LIMIT %s",
            (dataset_uid, before, before, page.size + 1),
        )
        return await cursor.fetchall()


async def all_failed(connection: Connection, dataset: str) -> bool:
    """Whether files came to the dataset of this name, and all of them failed."""
    cursor = await connection.execute(
        "SELECT bool_and(coalesce(j.state, '') = 'FAILED') FROM uploads u JOIN datasets d ON d.uid = u.dataset_uid"
        " LEFT JOIN jobs j ON j.name = u.name WHERE d.name = %s",
        (dataset,),
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0] is True


async def touch(connection: Connection, uid: UUID, expiry_seconds: float) -> None:
    """Give it its full time again."""
    await connection.execute(
        "UPDATE uploads SET expire_time = now() + make_interval(secs => %s) WHERE uid = %s", (expiry_seconds, uid)
    )


async def mark_committed(connection: Connection, uid: UUID) -> None:
    await connection.execute("UPDATE uploads SET committed = true WHERE uid = %s", (uid,))


async def write_ending(
    connection: Connection, name: str, versions: tuple[str, str], report: dict[str, Any] | None, row_count: int
) -> None:
    """What the validation found; `versions` are the names of what it made and held out, empty where nothing."""
    await connection.execute(
        "UPDATE uploads SET dataset_version = %s, split_dataset_version = %s, report = %s WHERE name = %s",
        (*versions, Jsonb(report) if report is not None else None, name),
    )
    await connection.execute(
        "UPDATE jobs SET progress = progress || %s WHERE name = %s", (Jsonb({"validated_row_count": row_count}), name)
    )


async def delete(connection: Connection, upload: Upload) -> None:
    await connection.execute("DELETE FROM jobs WHERE name = %s", (upload.name,))
    await connection.execute("DELETE FROM uploads WHERE uid = %s", (upload.uid,))


async def delete_expired(connection: Connection) -> list[UUID]:
    """Throw away those that were not committed in time."""
    cursor = await connection.execute("DELETE FROM uploads WHERE NOT committed AND expire_time < now() RETURNING uid")
    return [row[0] async for row in cursor]


async def needing_bytes(connection: Connection, uids: Iterable[UUID]) -> set[UUID]:
    """Those of `uids` whose staging file is still wanted: they receive, or a worker has to read them."""
    cursor = await connection.execute(
        "SELECT u.uid FROM uploads u LEFT JOIN jobs j ON j.name = u.name WHERE u.uid = ANY(%s) AND j.end_time IS NULL",
        (list(uids),),
    )
    return {row[0] async for row in cursor}


def _found(upload: Upload | None, name: str) -> Upload:
    if upload is None:
        raise NotFound("UPLOAD_NOT_FOUND", f"there is no upload {name}", name=name)
    return upload


async def _one(connection: Connection, query: str, name: str) -> Upload | None:
    async with connection.cursor(row_factory=class_row(Upload)) as cursor:
        await cursor.execute(query.encode(), (name,))
        return await cursor.fetchone()
