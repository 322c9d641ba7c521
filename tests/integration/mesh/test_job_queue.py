"""Behind what a job waits, from the table of jobs."""

from __future__ import annotations

from services.mesh.db.postgres import Database
from services.mesh.jobs import queue
from services.mesh.jobs.queue import WAITING_FOR_SLOTS, QueuePosition
from services.mesh.jobs.store import Job, Jobs, Lease, State
from tests.fix_member import PROJECT, new_job, stored


def full(*ids: str) -> tuple[str, ...]:
    return tuple(f"{PROJECT}/trainingJobs/{id_}" for id_ in ids)


async def taken(jobs: Jobs) -> Lease:
    lease = await jobs.claim(["work", "import"], "one", 60)
    assert lease is not None
    return lease


async def position(database: Database, jobs: Jobs, id_: str) -> QueuePosition | None:
    job = await stored(database, jobs, id_)
    async with database.transaction() as connection:
        return (await queue.positions(connection, [job])).get(job.uid)


async def test_queued_jobs_wait_behind_what_runs_and_what_is_taken_first(database: Database, jobs: Jobs) -> None:
    for id_ in ("a", "b", "c", "d"):
        await new_job(database, jobs, id_)
    async with database.transaction() as connection:
        await jobs.create(connection, "import", f"{PROJECT}/trainingJobs/i", {})
        await jobs.create(connection, "work", f"{PROJECT}/trainingJobs/urgent", {}, 10)
    assert await position(database, jobs, "urgent") == QueuePosition((), (), 0, None)
    assert await position(database, jobs, "c") == QueuePosition((), full("urgent", "a", "b"), 3, None)
    for _ in range(3):
        await taken(jobs)
    assert await position(database, jobs, "a") is None, "it runs"
    assert await position(database, jobs, "c") == QueuePosition(full("urgent", "a", "b"), (), 0, None)
    assert await position(database, jobs, "i") == QueuePosition(full("urgent", "a", "b"), full("c", "d"), 2, None)
    async with database.transaction() as connection:
        await jobs.cancel(connection, full("d")[0])
        await jobs.move(connection, await jobs.get(connection, full("urgent")[0]), State.SUCCEEDED)
    assert await position(database, jobs, "i") == QueuePosition(full("a", "b"), full("c"), 1, None)
    assert await position(database, jobs, "d") is None, "it has ended"


async def test_who_waits_for_slots_waits_behind_those_that_have_them(database: Database, jobs: Jobs) -> None:
    for id_ in ("a", "b", "c", "d"):
        await new_job(database, jobs, id_)
    leases = [await taken(jobs) for _ in range(3)]
    async with database.transaction() as connection:
        await jobs.report(connection, leases[0], {"phase": "training"})
        for lease in leases[1:]:
            await jobs.report(connection, lease, {"phase": WAITING_FOR_SLOTS})
    assert await position(database, jobs, "a") is None
    assert await position(database, jobs, "b") == QueuePosition(full("a"), (), 0, None)
    assert await position(database, jobs, "d") == QueuePosition(full("a", "b", "c"), (), 0, None)


async def test_a_try_that_waits_for_its_time_says_when_and_keeps_its_place(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "a")
    lease = await taken(jobs)
    async with database.transaction() as connection:
        job: Job = await jobs.held(connection, lease)
        await jobs.move(connection, job, State.QUEUED, delay_seconds=500)
    await new_job(database, jobs, "b")
    found = await position(database, jobs, "a")
    assert found is not None and found.ahead == () and found.retry_time is not None
    assert await position(database, jobs, "b") == QueuePosition((), full("a"), 1, None)


async def test_of_many_some_are_named_and_all_are_counted(database: Database, jobs: Jobs) -> None:
    ids = [f"j{number:02}" for number in range(30)]
    made = [await new_job(database, jobs, id_) for id_ in ids]
    async with database.transaction() as connection:
        found = await queue.positions(connection, made)
    assert [found[job.uid].ahead_count for job in made] == list(range(30))
    assert found[made[-1].uid].ahead == full(*ids[:20])
    assert found[made[5].uid].ahead == full(*ids[:5])
    async with database.transaction() as connection:
        assert await queue.positions(connection, []) == {}
