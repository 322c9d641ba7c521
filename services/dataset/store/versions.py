"""Rows of `versions` and `chunks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.dataset.datasets.chunks import Chunk
from services.dataset.entities import DatasetVersion
from services.mesh.db.postgres import Connection
from services.mesh.errors import InvalidArgument, NotFound
from services.mesh.rpc.pagination import PageRequest

_COLUMNS = (
    "dataset_uid, number, name, sha256, format, row_count, size_bytes, statistics, source_sha256, source_file_name,"
    " create_time"
)
_CHUNK = "sha256, first_row_index AS first_row, row_count AS rows, offset_bytes AS first_byte, size_bytes"
_COPY = (
    "COPY chunks (dataset_uid, number, index, sha256, first_row_index, row_count, offset_bytes, size_bytes) FROM STDIN"
)
_MAX_BIGINT = (1 << 63) - 1


@dataclass(frozen=True)
class NewVersion:
    """What reading a file gave; its number comes when it is stored."""

    sha256: str
    format: str
    row_count: int
    size_bytes: int
    statistics: dict[str, Any]
    source_sha256: str
    source_file_name: str
    chunks: Sequence[Chunk]


async def insert(connection: Connection, dataset_uid: UUID, number: int, name: str, new: NewVersion) -> DatasetVersion:
    """The version and its chunk table."""
    version = await _one(
        connection,
        "INSERT INTO versions (dataset_uid, number, name, sha256, format, row_count, size_bytes, statistics,"
        " source_sha256, source_file_name) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        f" RETURNING {_COLUMNS}",
        (
            dataset_uid,
            number,
            name,
            new.sha256,
            new.format,
            new.row_count,
            new.size_bytes,
            Jsonb(new.statistics),
            new.source_sha256,
            new.source_file_name,
        ),
    )
    assert version is not None
    async with connection.cursor() as cursor, cursor.copy(_COPY) as rows:
        for index, chunk in enumerate(new.chunks):
            place = (chunk.first_row, chunk.rows, chunk.first_byte, chunk.size_bytes)
            await rows.write_row((dataset_uid, number, index, chunk.sha256, *place))
    return version


async def get(connection: Connection, dataset_uid: UUID, number: int) -> DatasetVersion | None:
    return await _one(
        connection, f"SELECT {_COLUMNS} FROM versions WHERE dataset_uid = %s AND number = %s", (dataset_uid, number)
    )


async def list_(connection: Connection, dataset_uid: UUID, page: PageRequest) -> list[DatasetVersion]:
    """Newest first, one more than the page holds."""
    before = _MAX_BIGINT if page.after is None else page.after[0]
    if not isinstance(before, int) or not 0 <= before <= _MAX_BIGINT:
        raise InvalidArgument.of("page_token", "is not a token that a list returned")
    async with connection.cursor(row_factory=class_row(DatasetVersion)) as cursor:
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM versions WHERE dataset_uid = %s AND number < %s ORDER BY number DESC LIMIT %s",
            (dataset_uid, before, page.size + 1),
        )
        return await cursor.fetchall()


async def chunk_with_row(connection: Connection, version: DatasetVersion, row_index: int) -> Chunk:
    """The chunk that holds a row of the version."""
    return await _chunk(connection, "first_row_index", version, row_index)


async def chunk_with_byte(connection: Connection, version: DatasetVersion, offset_bytes: int) -> Chunk:
    """The chunk that holds a byte of the version."""
    return await _chunk(connection, "offset_bytes", version, offset_bytes)


async def next_sequence(connection: Connection, event_type: str, resource: str) -> int:
    """A number for an event of `resource`: 1, and more for one whose name was used before its dataset was deleted."""
    cursor = await connection.execute(
        "SELECT coalesce(max(sequence), 0) + 1 FROM events WHERE type = %s AND resource = %s", (event_type, resource)
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0]


async def _chunk(connection: Connection, column: str, version: DatasetVersion, position: int) -> Chunk:
    """The last chunk that starts at or before `position`. Raises NotFound when the version is gone."""
    query = (
        f"SELECT {_CHUNK} FROM chunks WHERE dataset_uid = %s AND number = %s AND {column} <= %s"
        f" ORDER BY {column} DESC LIMIT 1"
    )
    async with connection.cursor(row_factory=class_row(Chunk)) as cursor:
        await cursor.execute(query.encode(), (version.dataset_uid, version.number, position))
        chunk = await cursor.fetchone()
    if chunk is None:
        raise NotFound("VERSION_NOT_FOUND", f"{version.name} has been deleted", name=version.name)
    return chunk


async def _one(connection: Connection, query: str, parameters: tuple[Any, ...]) -> DatasetVersion | None:
    async with connection.cursor(row_factory=class_row(DatasetVersion)) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchone()
