"""Rows of `skipped_rows`."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.mesh.db.postgres import Connection


async def write(connection: Connection, upload_uid: UUID, rows: Sequence[bytes]) -> None:
    """`rows` are SkippedRows as JSON."""
    if not rows:
        return
    async with (
        connection.cursor() as cursor,
        cursor.copy("COPY skipped_rows (upload_uid, index, content) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(["uuid", "int4", "bytea"])
        for index, content in enumerate(rows):
            await copy.write_row((upload_uid, index, content))


async def read(
    connection: Connection, upload_uid: UUID, first: int, limit: int, max_bytes: int
) -> tuple[list[bytes], int]:
    """From the `first` on, as JSON: at most `limit`, and no more once they have `max_bytes`, but at least one. And how
    many there are in all."""
    cursor = await connection.execute(
        "SELECT content FROM (SELECT index, content, sum(length(content)) OVER (ORDER BY index) AS total"
        " FROM skipped_rows WHERE upload_uid = %s AND index >= %s AND index < %s) AS page"
        " WHERE total <= %s OR index = %s ORDER BY index",
        (upload_uid, first, first + limit, max_bytes, first),
    )
    found = [row[0] async for row in cursor]
    cursor = await connection.execute("SELECT count(*) FROM skipped_rows WHERE upload_uid = %s", (upload_uid,))
    row = await cursor.fetchone()
    assert row is not None
    return found, row[0]
