"""Rows of `models`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.mesh.db.postgres import Connection
from services.mesh.errors import AlreadyExists
from services.mesh.rpc.pagination import PageRequest
from services.trainer.entities import Model, NewModel

_COLUMNS = (
    "uid, name, parent, display_name, source, labels, state, architecture, parameter_count, context_length,"
    " vocabulary_size, manifest_sha256, size_bytes, error, create_time, parents"
)


async def insert(connection: Connection, uid: UUID, name: str, new: NewModel, parents: list[str]) -> Model:
    """Raises AlreadyExists when the name is taken."""
    row = await _one(
        connection,
        "INSERT INTO models (uid, name, parent, display_name, source, labels, parents, state)"
        f" VALUES (%s, %s, %s, %s, %s, %s, %s, 'IMPORTING') ON CONFLICT (name) DO NOTHING RETURNING {_COLUMNS}",
        (uid, name, new.parent, new.display_name, Jsonb(new.source), Jsonb(new.labels), parents),
    )
    if row is None:
        raise AlreadyExists("MODEL_ALREADY_EXISTS", f"{name} exists already", name=name)
    return row


async def get(connection: Connection, name: str) -> Model | None:
    return await _one(connection, f"SELECT {_COLUMNS} FROM models WHERE name = %s", (name,))


async def known_as(connection: Connection, reference: str) -> str:
    """What weights are called elsewhere: on the hub that they came from, else by the last parts of their name here."""
    model = await get(connection, reference)
    if model is not None and "hub" in model.source:
        return str(model.source["hub"]).removeprefix("hf:").partition("@")[0]
    _, _, rest = reference.partition("/trainingJobs/")
    return rest.replace("/checkpoints/", "/") or reference.rpartition("/")[2]


async def list_(connection: Connection, parent: str, page: PageRequest) -> list[Model]:
    """Newest first, one more than the page holds."""
    before = UUID(str(page.after[0])) if page.after else None
    async with connection.cursor(row_factory=class_row(Model)) as cursor:
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM models WHERE parent = %s AND (%s::uuid IS NULL OR uid < %s)"
            " ORDER BY uid DESC LIMIT %s",
            (parent, before, before, page.size + 1),
        )
        return await cursor.fetchall()


async def ready(connection: Connection, name: str, facts: dict[str, Any]) -> None:
    """Write what an import found; `facts` are columns of the table."""
    await connection.execute(
        "UPDATE models SET state = 'READY', architecture = %(architecture)s, parameter_count = %(parameter_count)s,"
        " context_length = %(context_length)s, vocabulary_size = %(vocabulary_size)s,"
        " manifest_sha256 = %(manifest_sha256)s, size_bytes = %(size_bytes)s WHERE name = %(name)s",
        {**facts, "name": name},
    )


async def fail(connection: Connection, name: str, error: dict[str, Any]) -> None:
    await connection.execute("UPDATE models SET state = 'FAILED', error = %s WHERE name = %s", (Jsonb(error), name))


async def lock(connection: Connection, name: str) -> None:
    """Until the transaction ends nobody can hold it (store/checkpoints.py)."""
    await connection.execute("SELECT FROM models WHERE name = %s FOR UPDATE", (name,))


async def delete(connection: Connection, name: str) -> None:
    """With its import and the requests that made it."""
    await connection.execute("DELETE FROM models WHERE name = %s", (name,))
    await connection.execute("DELETE FROM jobs WHERE name = %s", (name,))
    await connection.execute("DELETE FROM requests WHERE resource = %s", (name,))


async def forget_failed(connection: Connection, name: str) -> None:
    """Free the name of a model whose import failed: it has no files, and nothing can use it."""
    cursor = await connection.execute("DELETE FROM models WHERE name = %s AND state = 'FAILED'", (name,))
    if cursor.rowcount:
        await connection.execute("DELETE FROM jobs WHERE name = %s", (name,))
        await connection.execute("DELETE FROM requests WHERE resource = %s", (name,))


async def _one(connection: Connection, query: str, parameters: tuple[Any, ...]) -> Model | None:
    async with connection.cursor(row_factory=class_row(Model)) as cursor:
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchone()
