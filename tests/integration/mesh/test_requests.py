"""request_id: the same request gives the same answer, however many arrive at once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from services.mesh.db.postgres import Database
from services.mesh.errors import AlreadyExists
from services.mesh.jobs.store import Jobs
from services.mesh.rpc.idempotency import RequestKey, claim
from tests.fix_member import PROJECT, rows


@pytest.fixture
def create(database: Database, jobs: Jobs):
    """A Create as the services write it; the server makes the id where the caller chose none."""
    made = 0

    async def create(key: RequestKey, id_: str = "", *, fails: bool = False) -> str:
        nonlocal made
        made += 1
        name = f"{PROJECT}/trainingJobs/{id_ or f'made{made}'}"
        async with database.transaction() as connection:
            known = await claim(connection, key, name)
            if known is not None:
                return known
            await asyncio.sleep(0.01)
            if fails:
                raise ZeroDivisionError
            return (await jobs.create(connection, "work", name, {})).name

    return create


@pytest.mark.parametrize("id_", ["", "chosen"])
async def test_20_equal_requests_at_once_make_one_job(database: Database, create, id_: str) -> None:
    answers = await asyncio.gather(*(create(RequestKey(PROJECT, "r", "hash"), id_) for _ in range(20)))
    assert len(set(answers)) == 1
    assert await rows(database, "SELECT name FROM jobs") == [(answers[0],)]


async def test_of_20_different_requests_with_one_id_one_is_answered(database: Database, create) -> None:
    keys = [RequestKey(PROJECT, "r", f"hash{number}") for number in range(20)]
    answers = await asyncio.gather(*(create(key) for key in keys), return_exceptions=True)
    kinds = Counter(type(answer) for answer in answers)
    assert kinds == {str: 1, AlreadyExists: 19}
    assert {a.reason for a in answers if isinstance(a, AlreadyExists)} == {"REQUEST_ID_REUSED"}
    assert len(await rows(database, "SELECT name FROM jobs")) == 1


async def test_an_id_belongs_to_its_parent(create) -> None:
    assert await create(RequestKey("projects/a", "r", "h")) != await create(RequestKey("projects/b", "r", "h"))


async def test_without_an_id_each_request_is_its_own(create) -> None:
    assert await create(RequestKey(PROJECT, "", "h")) != await create(RequestKey(PROJECT, "", "h"))


async def test_a_request_that_failed_is_not_remembered(database: Database, create) -> None:
    key = RequestKey(PROJECT, "r", "h")
    with pytest.raises(ZeroDivisionError):
        await create(key, fails=True)
    assert await create(key) == (await rows(database, "SELECT name FROM jobs"))[0][0]


async def test_of_two_at_once_the_second_goes_on_when_the_first_fails(database: Database, create) -> None:
    key = RequestKey(PROJECT, "r", "h")
    failed, answer = await asyncio.gather(create(key, fails=True), create(key), return_exceptions=True)
    assert isinstance(failed, ZeroDivisionError) or isinstance(answer, str)
    assert len(await rows(database, "SELECT name FROM jobs")) == 1
