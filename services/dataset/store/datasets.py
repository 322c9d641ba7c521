"""Rows of `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.dataset.entities import Dataset
from services.dataset.store import before_uid
from services.mesh.db.postgres import Connection
from services.mesh.errors import AlreadyExists, NotFound
from services.mesh.rpc.pagination import PageRequest

_COLUMNS = "uid, name, parent, display_name, format, labels, version_count, revision, create_time, update_time"


async def insert(
    connection: Connection,
    uid: UUID,
    name: str,
    *,
    display_name: str,
    format: str,
    labels: Mapping[str, str],
) -> Dataset:
    """Raises AlreadyExists when the name is taken."""
    dataset = await _one(
        connection,
        "INSERT INTO datasets (uid, name, parent, display_name, format, labels) VALUES (%s, %s, %s, %s, %s, %s)"
        f" ON CONFLICT (name) DO NOTHING RETURNING {_COLUMNS}",
        (uid, name, name.rsplit("/", 2)[0], display_name, format, Jsonb(dict(labels))),
    )
    if dataset is None:
        raise AlreadyExists("DATASET_ALREADY_EXISTS", f"{name} exists already", name=name)
    return dataset


async def get(connection: Connection, name: str) -> Dataset:
    """Raises NotFound."""
    return _found(await _one(connection, f"SELECT {_COLUMNS} FROM datasets WHERE name = %s", (name,)), name)


async def lock(connection: Connection, name: str) -> Dataset:
    """The dataset, which nobody else changes until this transaction ends. Raises NotFound."""
    query = f"SELECT {_COLUMNS} FROM datasets WHERE name = %s FOR UPDATE"
    return _found(await _one(connection, query, (name,)), name)


async def lock_uid(connection: Connection, uid: UUID) -> Dataset:
    """Like `lock`, of an upload's or a version's dataset."""
    query = f"SELECT {_COLUMNS} FROM datasets WHERE uid = %s FOR UPDATE"
    return _found(await _one(connection, query, (uid,)), str(uid))


async def list_(connection: Connection, parent: str, page: PageRequest) -> list[Dataset]:
    """Newest first, one more than the page holds."""
    before = before_uid(page)
    async with connection.cursor(row_factory=class_row(Dataset)) as cursor:
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM datasets WHERE parent = %s AND (%s::uuid IS NULL OR uid < %s)"
            " ORDER BY uid DESC LIMIT %s",
            (parent, before, before, page.size + 1),
        )
        return await cursor.fetchall()


async def update(connection: Connection, uid: UUID, display_name: str, labels: Mapping[str, str]) -> Dataset:
    return _found(
        await _one(
            connection,
            "UPDATE datasets SET display_name = %s, labels = %s, revision = revision + 1, update_time = now()"
            f" WHERE uid = %s RETURNING {_COLUMNS}",
            (display_name, Jsonb(dict(labels)), uid),
        ),
        str(uid),
    )


async def count_version(connection: Connection, uid: UUID, number: int) -> None:
    """Make `number` the newest version."""
    await connection.execute(
        "UPDATE datasets SET version_count = %s, revision = revision + 1, update_time = now() WHERE uid = %s",
        (number, uid),
    )


async def lock_jobs(connection: Connection, name: str) -> None:
    """Hold the validations of a dataset. Before the dataset itself: a worker that ends takes them in this order."""
    await connection.execute("SELECT uid FROM jobs WHERE parent = %s ORDER BY uid FOR UPDATE", (name,))


async def delete(connection: Connection, dataset: Dataset) -> list[str]:
    """Delete it with versions, uploads, validations and remembered requests; returns the names of the validations."""
    cursor = await connection.execute("DELETE FROM jobs WHERE parent = %s RETURNING name", (dataset.name,))
    jobs = [row[0] async for row in cursor]
    await connection.execute("DELETE FROM datasets WHERE uid = %s", (dataset.uid,))
    await connection.execute("DELETE FROM requests WHERE resource = %s", (dataset.name,))
    return jobs


def _found(dataset: Dataset | None, name: str) -> Dataset:
    if dataset is None:
        raise NotFound("DATASET_NOT_FOUND", f"there is no dataset {name}", name=name)
    return dataset


async def _one(connection: Connection, query: str, parameters: tuple[Any, ...]) -> Dataset | None:
    async with connection.cursor(row_factory=class_row(Dataset)) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchone()
