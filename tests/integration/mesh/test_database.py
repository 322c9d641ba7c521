"""Migrations, transactions and notices against a real server, which may go away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psycopg
import pytest

from services.mesh.db import postgres
from services.mesh.db.postgres import Database, wait
from services.mesh.errors import Unavailable
from services.supervisor import embedded
from services.supervisor.embedded import process
from tests.fix_member import rows, until

MESH = sorted(
    f"services.mesh/{path.name}" for path in (Path(postgres.__file__).parents[1] / "migrations").glob("*.sql")
)


async def test_migrations_run_once_in_order_though_five_start_at_once(postgres_url: str) -> None:
    databases = [Database(postgres_url, schema) for schema in ("one", "one", "one", "two", "two")]
    await asyncio.gather(*(database.migrate("services.mesh") for database in databases))
    await databases[0].migrate("services.mesh")
    with psycopg.connect(postgres_url) as connection:
        for schema in ("one", "two"):
            applied = connection.execute(f"SELECT file FROM {schema}.migrations").fetchall()  # pyright: ignore
            assert applied == [(name,) for name in MESH]


async def test_a_migration_that_fails_leaves_nothing(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package_with_migrations" / "migrations"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "0001_good.sql").write_text("CREATE TABLE good (a text);")
    (folder / "0002_bad.sql").write_text("CREATE TABLE half (a text); SELECT 1/0;")
    monkeypatch.syspath_prepend(str(tmp_path))
    database = Database(postgres_url, "one")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await database.migrate("services.mesh", "package_with_migrations")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'one'").fetchone() == (0,)
    (folder / "0002_bad.sql").write_text("ALTER TABLE good ADD b text;")
    await database.migrate("services.mesh", "package_with_migrations")
    async with database:
        names = await rows(database, "SELECT file FROM migrations ORDER BY ctid")
    assert [name for (name,) in names] == [
        *MESH,
        "package_with_migrations/0001_good.sql",
        "package_with_migrations/0002_bad.sql",
    ]


async def test_who_stands_still_in_a_transaction_gives_up_its_locks(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Database(postgres_url, "public") as others:
        async with others.transaction() as connection:
            await connection.execute("CREATE TABLE locked AS SELECT 1 AS number")
        monkeypatch.setattr(postgres, "IDLE_TRANSACTION_SECONDS", 0.2)
        async with Database(postgres_url, "public") as frozen:
            with pytest.raises(Unavailable):
                async with frozen.transaction() as connection:
                    await connection.execute("SELECT * FROM locked FOR UPDATE")
                    async with others.transaction() as other:  # waits until it may
                        await other.execute("UPDATE locked SET number = 2")
                    await connection.execute("UPDATE locked SET number = 3")
    with psycopg.connect(postgres_url) as reader:
        assert reader.execute("SELECT number FROM locked").fetchall() == [(2,)]


async def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            await connection.execute("CREATE TABLE t (a text)")
            raise ZeroDivisionError
    assert await rows(database, "SELECT to_regclass('t')::text") == [(None,)]


async def test_times_are_in_utc(database: Database) -> None:
    assert await rows(database, "SHOW timezone") == [("UTC",)]


async def test_a_notice_comes_with_the_commit_and_not_without_it(database: Database) -> None:
    with database.notices.subscribe("topic") as woken, database.notices.subscribe("other") as other:
        await _connected(database)
        woken.clear()
        other.clear()
        with pytest.raises(ZeroDivisionError):
            async with database.transaction() as connection:
                await database.notify(connection, "topic")
                raise ZeroDivisionError
        async with database.transaction() as connection:
            await database.notify(connection, "topic")
            assert not await wait(woken, 0.2)
        started = time.monotonic()
        assert await wait(woken, 5)
        assert time.monotonic() - started < 1
        assert not other.is_set()


async def _connected(database: Database) -> None:
    """Wait past the wake-up of everybody that a new connection begins with: notices come in order."""
    with database.notices.subscribe("connected") as connected:
        await until(lambda: _is_listening(database))
        async with database.transaction() as connection:
            await database.notify(connection, "connected")
        assert await wait(connected, 5)


async def _is_listening(database: Database) -> bool:
    found = await rows(database, "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND state = 'idle'")
    return bool(found)


async def test_no_notice_is_missed_in_a_flood(database: Database) -> None:
    """Each waiter reads what is stored, waits, and reads again; none may sleep through the last write."""
    await until(lambda: _is_listening(database))
    async with database.transaction() as connection:
        await connection.execute("CREATE TABLE counts (n int)")

    async def follow() -> None:
        with database.notices.subscribe("count") as written:
            while (await rows(database, "SELECT count(*) FROM counts"))[0][0] < 100:
                assert await wait(written, 5), "a notice was missed"

    followers = [asyncio.create_task(follow()) for _ in range(3)]
    for number in range(100):
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO counts VALUES (%s)", (number,))
            await database.notify(connection, "count")
    await asyncio.gather(*followers)


async def test_more_callers_than_connections_wait_their_turn(database: Database) -> None:
    assert [len(found) for found in await asyncio.gather(*(rows(database, "SELECT pg_sleep(0.02)") for _ in range(60)))]


async def test_the_server_is_killed_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions say Unavailable meanwhile and work at once afterwards; waiters are woken, as they may have missed
    something."""
    monkeypatch.setattr(postgres, "CHECKOUT_TIMEOUT_SECONDS", 2.0)
    server = embedded.Postgres(tmp_path / "pg", embedded.free_port(), durable=False)
    program = server.program(tmp_path / "log")
    async with process.running(program) as running:
        database = Database(server.url, "one")
        await database.migrate("services.mesh")
        await database.__aenter__()
        await asyncio.gather(*(rows(database, "SELECT pg_sleep(0.1)") for _ in range(8)))  # fills the pool
        running.kill()
        await running.wait()
        tries = [rows(database, "SELECT 1") for _ in range(10)]  # each connection of the pool is found dead
        assert {type(one) for one in await asyncio.gather(*tries, return_exceptions=True)} == {Unavailable}
        patient = asyncio.create_task(checked_out(database, timeout_seconds=30))
        await asyncio.sleep(5.5)  # a pause that doubles, as the pool's own does, would now be one of 8 s
    with database.notices.subscribe("topic") as woken:
        woken.clear()
        async with process.running(program):
            await asyncio.wait_for(patient, 3)
            await asyncio.gather(*(rows(database, "SELECT 1") for _ in range(20)))  # each within 2 s
            assert await wait(woken, 5)
            async with database.transaction() as connection:
                await database.notify(connection, "topic")
            assert await wait(woken, 5)
            await database.__aexit__()


async def checked_out(database: Database, timeout_seconds: float) -> None:
    async with database._pool.connection(timeout_seconds):
        pass


async def test_a_server_that_goes_in_the_middle_is_unavailable(tmp_path: Path) -> None:
    async with embedded.postgres(tmp_path / "pg", durable=False) as server:
        database = Database(server.url, "one")
        await database.migrate("services.mesh")
        async with database:
            with pytest.raises(Unavailable):
                async with database.transaction() as connection:
                    await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            with pytest.raises(Unavailable):
                async with database.transaction() as connection:
                    await connection.execute("SELECT 1")
                    with psycopg.connect(server.administrator_url, autocommit=True) as other:
                        other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
            assert await rows(database, "SELECT 1") == [(1,)]
