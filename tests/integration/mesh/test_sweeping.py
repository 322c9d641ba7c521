"""What is old enough goes, what is not stays, whoever else sweeps or writes meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from pathlib import Path

import pytest

from services.mesh.artifacts import ArtifactStore
from services.mesh.db import expiry
from services.mesh.db.expiry import Sweeper, Unfinished
from services.mesh.db.postgres import Database
from services.mesh.errors import InvalidArgument
from services.mesh.rpc.idempotency import RequestKey, claim
from services.mesh.settings import DAY_SECONDS, Environment, KeepSettings
from tests.fix_member import background, rows, until

PARENT = "projects/default"
REQUESTS = "SELECT request_id FROM requests ORDER BY create_time DESC, request_id"
MARKS = "SELECT event_id FROM consumed_events ORDER BY consume_time DESC, event_id"


@pytest.fixture
def sweeper(database: Database, tmp_path: Path) -> Sweeper:
    return Sweeper(database, f"file://{tmp_path}/store", KeepSettings())


async def age(database: Database, *days: float) -> None:
    """A request and a mark of each age."""
    async with database.transaction() as connection:
        for each in days:
            await connection.execute(
                "INSERT INTO requests (parent, request_id, request_sha256, resource, create_time)"
                " VALUES (%s, %s, '', 'r', now() - make_interval(secs => %s))",
                (PARENT, f"{each:g}", each * DAY_SECONDS),
            )
            await connection.execute(
                "INSERT INTO consumed_events VALUES ('c', %s, now() - make_interval(secs => %s))",
                (f"{each:g}", each * DAY_SECONDS),
            )


async def test_rows_go_when_they_are_old(database: Database, sweeper: Sweeper) -> None:
    await age(database, 0, 29.9, 30.1, 400)
    assert await sweeper.sweep() == {"requests": 2, "consumed_events": 2, "files": 0}
    assert await rows(database, REQUESTS) == await rows(database, MARKS) == [("0",), ("29.9",)]
    assert await sweeper.sweep() == {"requests": 0, "consumed_events": 0, "files": 0}


async def test_each_age_is_its_own(database: Database, tmp_path: Path) -> None:
    keep = KeepSettings.read(Environment({"RLHF_KEEP_REQUESTS_DAYS": "7", "RLHF_KEEP_CONSUMED_EVENTS_DAYS": "15"}))
    await age(database, 6.9, 7.1, 14.9, 15.1)
    await Sweeper(database, f"file://{tmp_path}", keep).sweep()
    assert await rows(database, REQUESTS) == [("6.9",)]
    assert await rows(database, MARKS) == [("6.9",), ("7.1",), ("14.9",)]


def test_what_is_still_of_use_cannot_be_swept() -> None:
    """A request may come again for a week, an event for two."""
    names = ("RLHF_KEEP_REQUESTS_DAYS", "RLHF_KEEP_CONSUMED_EVENTS_DAYS", "RLHF_KEEP_UNFINISHED_DAYS")
    environment = Environment(dict(zip(names, ("6", "14", "0.5"), strict=True)))
    KeepSettings.read(environment)
    with pytest.raises(InvalidArgument) as caught:
        environment.done()
    assert [violation.field for violation in caught.value.violations] == list(names)


async def test_several_sweep_at_once_and_none_waits_for_a_row_in_use(
    database: Database, sweeper: Sweeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "_BATCH", 7)
    await age(database, *range(31, 131))
    others = [Sweeper(database, f"file://{tmp_path}/store", KeepSettings()) for _ in range(3)]
    async with database.transaction() as connection:
        key = RequestKey(PARENT, "31", "")
        assert await claim(connection, key, "other") == "r"  # holds the row until the end of the transaction
        async with asyncio.timeout(20):
            removed = await asyncio.gather(*(each.sweep() for each in (sweeper, *others)))
    assert sum(each["requests"] for each in removed) == 99
    assert sum(each["consumed_events"] for each in removed) == 100
    assert await rows(database, REQUESTS) == [("31",)]


async def test_the_event_log_stays(database: Database, sweeper: Sweeper) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO events (id, type, resource, sequence, payload, principal, create_time, publish_time)"
            " VALUES (%s, 't', 'r', 1, '{}', '', 'epoch', 'epoch')",
            (uuid.uuid4(),),
        )
    await sweeper.sweep()
    assert await rows(database, "SELECT resource FROM events") == [("r",)]


async def test_rows_are_found_by_an_index(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")
        for table, column in expiry._AGES.items():
            query = f"EXPLAIN SELECT ctid FROM {table} WHERE {column} < now() ORDER BY {column} LIMIT 1000"
            plan = await (await connection.execute(query.encode())).fetchall()
            assert f"{table}_by_age" in str(plan)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a store writes what is not yet a blob."""
    folder = tmp_path / "store with space" / "writing"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def unfinished(folder: Path) -> Unfinished:
    return Unfinished(f"file://{folder.parent}", DAY_SECONDS)


def written(path: Path, days_ago: float) -> Path:
    """What a writer has left that wrote to it so long ago for the last time."""
    path.write_bytes(b"half")
    moment = time.time() - days_ago * DAY_SECONDS
    os.utime(path, (moment, moment))
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_files_that_were_never_finished_go_and_blobs_stay(folder: Path, unfinished: Unfinished) -> None:
    store = ArtifactStore(f"file://{folder.parent}")
    sha256 = await store.put_blob(b"whole")
    written(folder / "old", 1.1)
    written(folder / "young", 0.9)
    with store._writing("0" * 64):
        assert await unfinished.remove() == 0  # seen for the first time
        assert await unfinished.remove() == 1
        assert len(left(folder)) == 2 and "young" in left(folder)
    assert await store.read_blob(sha256) == b"whole"


async def test_a_writer_that_is_killed_leaves_its_file_where_it_is_looked_for(
    folder: Path, unfinished: Unfinished
) -> None:
    with ArtifactStore(f"file://{folder.parent}")._writing("0" * 64):
        assert unfinished._filesystem.find(unfinished._folder) == [str(folder / name) for name in left(folder)] != []


async def test_a_store_that_nobody_has_written_to_is_empty(tmp_path: Path) -> None:
    assert await Unfinished(f"file://{tmp_path}/new", DAY_SECONDS).remove() == 0


async def test_a_file_that_is_written_to_stays_though_the_clock_jumps(folder: Path, unfinished: Unfinished) -> None:
    """By the clock as it is now it is days old each time; yet between the looks it was written to."""
    for days in (3.0, 2.5, 2.0):
        written(folder / "growing", days)
        assert await unfinished.remove() == 0
    assert left(folder) == ["growing"]
    assert await unfinished.remove() == 1


async def test_two_processes_remove_one_file(folder: Path) -> None:
    written(folder / "old", 2)
    both = [Unfinished(f"file://{folder.parent}", DAY_SECONDS) for _ in range(2)]
    for _ in range(2):
        await asyncio.gather(*(each.remove() for each in both))
    assert left(folder) == []


async def test_it_goes_on_after_an_error(database: Database, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "SECONDS", 0.01)
    async with database.transaction() as connection:
        await connection.execute("ALTER TABLE consumed_events RENAME TO elsewhere")
    await age_requests(database)
    async with background(sweeper.run()):
        await until(lambda: is_empty(database))
        async with database.transaction() as connection:
            await connection.execute("ALTER TABLE elsewhere RENAME TO consumed_events")
        await age(database, 31)
        await until(lambda: is_empty(database, MARKS))


async def age_requests(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO requests VALUES (%s, 'x', '', 'r', 'epoch')", (PARENT,))


async def is_empty(database: Database, query: str = REQUESTS) -> bool:
    return not await rows(database, query)
