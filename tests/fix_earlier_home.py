"""A home that earlier code made, kept in `earlier_home.tar.gz`: what its services answered, the rows of its database,
its artifacts and the folders of its runs.

Made of a mesh of that code that is up, while a run of it is stopped (SIGSTOP) after a checkpoint:
`python -m tests.fix_earlier_home HOME`. What was in it is in `tests/integration/trainer/test_earlier_home.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg import sql

KEPT = Path(__file__).with_name("earlier_home.tar.gz")
PROJECT = "/v1/projects/default"
SCHEMAS = ("dataset", "trainer")
_FOLDERS = ("artifacts", "trainer")
# In the place of the home's path in rows and answers.
_HOME = "{home}"


async def answers(get: Callable[[str], Awaitable[httpx.Response]]) -> dict[str, Any]:
    """What the services of a mesh say of all that they hold, by path: JSON, or the SHA-256 of what is downloaded."""
    found: dict[str, Any] = {}

    async def ask(path: str) -> Any:
        response = await get(path)
        assert response.status_code == 200, (path, response.text)
        if ":stream" in path:
            found[path] = [json.loads(line) for line in response.text.splitlines()]
        else:
            found[path] = response.json()
        return found[path]

    async def fetch(path: str) -> None:
        found[path] = hashlib.sha256((await get(path)).content).hexdigest()

    for dataset in (await ask(f"{PROJECT}/datasets"))["datasets"]:
        await ask(f"/v1/{dataset['name']}")
        await ask(f"/v1/{dataset['name']}/uploads")
        for version in (await ask(f"/v1/{dataset['name']}/versions"))["datasetVersions"]:
            await ask(f"/v1/{version['name']}/rows")
            await fetch(f"/v1/{version['name']}:download")
    for model in (await ask(f"{PROJECT}/models"))["models"]:
        for file in (await ask(f"/v1/{model['name']}"))["files"]:
            await fetch(f"/v1/{model['name']}:download?path={file['path']}")
    for job in (await ask(f"{PROJECT}/trainingJobs"))["trainingJobs"]:
        await ask(f"/v1/{job['name']}")
        await ask(f"/v1/{job['name']}/samples?pageSize=1000")
        for kind in ("streamEvents", "streamMetrics", "streamLogs"):
            await ask(f"/v1/{job['name']}:{kind}?storedOnly=true")
        for checkpoint in (await ask(f"/v1/{job['name']}/checkpoints"))["checkpoints"]:
            for file in (await ask(f"/v1/{checkpoint['name']}"))["files"]:
                await fetch(f"/v1/{checkpoint['name']}:download?path={file['path']}")
    return found


def restore(postgres_url: str, home: Path) -> dict[str, Any]:
    """Make the home and its database as they were; what its services answered."""
    with tarfile.open(KEPT) as archive:
        archive.extractall(home, filter="data")
    rows = json.loads((home / "rows.json").read_text().replace(_HOME, str(home)))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for schema, tables in rows.items():
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
            connection.execute("CREATE TABLE migrations (file text PRIMARY KEY, apply_time timestamptz DEFAULT now())")
            for row in sorted(tables["migrations"], key=lambda row: row["apply_time"]):
                package, _, name = row["file"].partition("/")
                connection.execute((files(package) / "migrations" / name).read_text().encode())
            for table, values in tables.items():
                _insert(connection, table, values)
    return json.loads((home / "answers.json").read_text().replace(_HOME, str(home)))


def _insert(connection: psycopg.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    query = "INSERT INTO {} OVERRIDING SYSTEM VALUE SELECT (jsonb_populate_record(NULL::{}, %s)).*"
    named = sql.SQL(query).format(sql.Identifier(table), sql.Identifier(table))
    for row in rows:
        connection.execute(named, [json.dumps(row)])
    identities = "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema()"
    for (column,) in connection.execute(f"{identities} AND table_name = %s AND is_identity = 'YES'", [table]):
        last = sql.SQL("SELECT setval(pg_get_serial_sequence(%s, %s), 1 + coalesce(max({}), 0)) FROM {}")
        connection.execute(last.format(sql.Identifier(column), sql.Identifier(table)), [table, column])


def _rows(postgres_url: str) -> dict[str, dict[str, list[Any]]]:
    """By schema and table, those that others refer to first."""
    with psycopg.connect(postgres_url) as connection:
        tables = "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r' ORDER BY oid"
        found: dict[str, dict[str, list[Any]]] = {}
        for schema in SCHEMAS:
            found[schema] = {}
            for (table,) in connection.execute(tables, [schema]).fetchall():
                query = sql.SQL("SELECT to_jsonb(each) FROM {} AS each").format(sql.Identifier(schema, table))
                found[schema][table] = [row for (row,) in connection.execute(query)]
        return found


async def _make(home: Path) -> None:
    endpoints = json.loads((home / "run" / "endpoints.json").read_text())
    headers = {"authorization": f"Bearer {(home / 'token').read_text().strip()}"}
    async with httpx.AsyncClient(base_url=endpoints["http"], headers=headers, timeout=30, trust_env=False) as http:
        said = json.dumps(await answers(http.get), indent=1).replace(str(home), _HOME)
    rows = json.dumps(_rows(endpoints["postgres_url"]), indent=1).replace(str(home), _HOME)
    with tarfile.open(KEPT, "w:gz") as archive:
        for name, content in (("answers.json", said), ("rows.json", rows)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content.encode())
            archive.addfile(entry, io.BytesIO(content.encode()))
        for path in _kept(home):
            archive.add(path, str(path.relative_to(home)), recursive=False)


def _kept(home: Path) -> Iterator[Path]:
    for folder in _FOLDERS:
        yield from sorted(path for path in (home / folder).rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    asyncio.run(_make(Path(sys.argv[1])))
