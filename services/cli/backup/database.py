"""The mesh's database, saved and put back by PostgreSQL's own programs.

Addresses name the file of the password, not the password: they may stand on a command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from services.mesh import catalog
from services.mesh.artifacts import references
from services.mesh.errors import PlatformError, Unavailable
from services.mesh.settings import child_environment
from services.supervisor.embedded.home import Home
from services.supervisor.embedded.ports import free_port
from services.supervisor.embedded.postgres_server import Postgres, binaries
from services.supervisor.embedded.process import running
from services.supervisor.leftovers import MARK

# So long a stream delivers an event again; whoever has done its work knows it for longer.
_EVENTS = "7 days"
_PATHS = ("training_state_path", "weights_path")


class ToolFailed(PlatformError):
    """A program of PostgreSQL's did not do its work; the message ends with what it said."""

    code = "INTERNAL"


def url_of_running(home: Home) -> str:
    """Raises Unavailable."""
    try:
        return str(json.loads(home.endpoints.read_text())["postgres_url"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Unavailable("MESH_NOT_UP", "the mesh has ended meanwhile; try again") from None


@contextlib.contextmanager
def started(folder: Path, home: Home) -> Iterator[str]:
    """A server on `folder`, while no mesh has it; its address. It is marked as one of `home`."""
    environment = child_environment(**{MARK: str(home.root)})
    server = Postgres(folder, free_port(), environment)
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        runner.run(stack.enter_async_context(running(server.program(folder / "backup.log"))))
        try:
            yield server.url
        finally:
            runner.run(stack.aclose())


def dump(url: str, snapshot: str, target: Path) -> None:
    """Raises ToolFailed."""
    _run("pg_dump", f"--dbname={url}", "--format=custom", "--no-owner", f"--snapshot={snapshot}", f"--file={target}")


def load(url: str, source: Path) -> None:
    """Into an empty database, all of it or nothing. Raises ToolFailed."""
    _run("pg_restore", f"--dbname={url}", "--single-transaction", "--exit-on-error", "--no-owner", str(source))


def migrations(connection: psycopg.Connection) -> list[str]:
    """Of all schemas, as `package/file.sql`."""
    found: list[str] = []
    for schema in ("artifacts", *catalog.SERVICES):
        if _exists(connection, f"{schema}.migrations"):
            query = sql.SQL("SELECT file FROM {}").format(sql.Identifier(schema, "migrations"))
            found += [row[0] for row in connection.execute(query)]
    return sorted({*found})


def lock_files(connection: psycopg.Connection) -> None:
    """Until the transaction ends no row changes that names a file of a run or an upload: what goes has gone before."""
    for table in ("trainer.checkpoints", "dataset.uploads"):
        if _exists(connection, table):
            connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(sql.Identifier(*table.split("."))))


def lock_blobs(connection: psycopg.Connection) -> None:
    """Until the transaction ends nothing of the artifact store is collected."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (references.LOCK,))


def move(url: str, old: str, new: str) -> dict[str, int]:
    """Have what was restored speak of its new home. How far each run's spool has been read, by its path.

    Events of the last days are published once more: NATS begins empty, and who has had one knows it.
    """
    with psycopg.connect(url) as connection:
        for schema in catalog.SERVICES:
            if _exists(connection, f"{schema}.events"):
                query = "UPDATE {0} SET publish_time = NULL"
                query += " WHERE create_time > (SELECT max(create_time) FROM {0}) - %s::interval"
                connection.execute(sql.SQL(query).format(sql.Identifier(schema, "events")), (_EVENTS,))
        if not _exists(connection, "trainer.checkpoints"):
            return {}
        for column in map(sql.Identifier, _PATHS):
            query = "UPDATE trainer.checkpoints SET {0} = %(new)s || substr({0}, length(%(old)s) + 1)"
            query = sql.SQL(query + " WHERE starts_with({0}, %(old)s || '/')").format(column)
            connection.execute(query, {"old": old, "new": new})
        rows = connection.execute("SELECT job_uid, attempt, record_offset_bytes FROM trainer.spools").fetchall()
    return {f"trainer/jobs/{uid}/attempts/{attempt}/spool.jsonl": offset for uid, attempt, offset in rows}


def _exists(connection: psycopg.Connection, table: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone()
    return row is not None and bool(row[0])


def _run(program: str, *arguments: str) -> None:
    environment = child_environment(LC_ALL="C.UTF-8")
    done = subprocess.run(  # noqa: S603 - a program of ours, with paths that the user has named
        [str(binaries() / program), *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ToolFailed("TOOL_FAILED", f"{program} failed:\n{done.stderr.strip()[-2000:]}")
