"""The job row: leases and fencing, the table of moves, the sequence and its events, lists."""

from __future__ import annotations

import asyncio
import itertools

import psycopg
import pytest

from services.mesh.db.postgres import Database
from services.mesh.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PlatformError
from services.mesh.events.outbox import EventLog
from services.mesh.jobs.store import TERMINAL, TRANSITIONS, Job, Jobs, Lease, State
from services.mesh.rpc.pagination import PageRequest
from tests.fix_member import PROJECT, announce_in, new_job, rows, stored

EVENTS = "SELECT resource, sequence FROM events ORDER BY ordinal"


async def claim(jobs: Jobs, owner: str = "one", lease_seconds: float = 60) -> Lease:
    lease = await jobs.claim(["work"], owner, lease_seconds)
    assert lease is not None
    return lease


async def put_into(database: Database, job: Job, state: State) -> Job:
    """Set a state behind the table's back."""
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET state = %s WHERE uid = %s", (state, job.uid))
    return await stored(database, Jobs(database, announce_in(EventLog(database))), job.name.rpartition("/")[2])


async def test_every_move_is_allowed_or_refused_by_the_table(database: Database, jobs: Jobs) -> None:
    for before, after in itertools.product(State, State):
        id_ = f"{before}-{after}".lower()
        job = await put_into(database, await new_job(database, jobs, id_), before)
        async with database.transaction() as connection:
            if after in TRANSITIONS[before]:
                moved = await jobs.move(connection, job, after)
                assert (moved.state, moved.sequence) == (after, job.sequence + 1)
                assert (moved.end_time is not None) == (after in TERMINAL)
            else:
                with pytest.raises(FailedPrecondition) as caught:
                    await jobs.move(connection, job, after)
                assert caught.value.metadata == {"name": job.name, "state": before}
        expected = 2 if after in TRANSITIONS[before] else 1
        assert (await stored(database, jobs, id_)).sequence == expected
        events = await rows(database, "SELECT sequence FROM events WHERE resource = %s ORDER BY ordinal", job.name)
        assert events == [(n,) for n in range(1, expected + 1)]


def test_the_table_knows_every_state_and_its_ends() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state, to in TRANSITIONS.items() if not to} == TERMINAL


async def test_a_rolled_back_move_leaves_neither_state_nor_event(database: Database, jobs: Jobs) -> None:
    job = await new_job(database, jobs, "j")
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            await jobs.move(connection, job, State.RUNNING)
            raise ZeroDivisionError
    assert await stored(database, jobs, "j") == job
    assert await rows(database, EVENTS) == [(job.name, 1)]


async def test_a_failed_announcement_undoes_the_move(database: Database, jobs: Jobs) -> None:
    job = await new_job(database, jobs, "j")

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as connection:
            await Jobs(database, fail).cancel(connection, job.name)
    assert await stored(database, jobs, "j") == job


async def test_a_move_from_what_is_no_longer_so_is_refused(database: Database, jobs: Jobs) -> None:
    job = await new_job(database, jobs, "j")
    await claim(jobs)
    with pytest.raises(Aborted) as caught:
        async with database.transaction() as connection:
            await jobs.move(connection, job, State.CANCELLED)
    assert caught.value.reason == "JOB_CHANGED"
    assert (await stored(database, jobs, "j")).state is State.RUNNING


async def test_a_name_is_given_once(database: Database, jobs: Jobs) -> None:
    job = await new_job(database, jobs, "j")
    with pytest.raises(AlreadyExists) as caught:
        await new_job(database, jobs, "j")
    assert caught.value.metadata == {"name": job.name}
    with pytest.raises(NotFound):
        await stored(database, jobs, "other")


async def test_the_most_urgent_then_the_oldest_is_claimed(database: Database, jobs: Jobs) -> None:
    for id_, priority in (("a", 0), ("b", 5), ("c", 0), ("d", -1), ("e", 5)):
        await new_job(database, jobs, id_, priority=priority)
    await new_job(database, jobs, "other", kind="other", priority=9)
    found = [(await claim(jobs)).job.name.rpartition("/")[2] for _ in range(5)]
    assert found == ["b", "e", "a", "c", "d"]
    assert await jobs.claim(["work"], "one", 60) is None


async def test_a_retry_waits_until_its_time(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    lease = await claim(jobs)
    async with database.transaction() as connection:
        await jobs.move(connection, await jobs.held(connection, lease), State.QUEUED, delay_seconds=0.5)
    assert await jobs.claim(["work"], "one", 60) is None
    await asyncio.sleep(0.6)
    again = await claim(jobs)
    assert (again.taken_over, again.job.sequence) == (False, 4)
    assert again.job.start_time == lease.job.start_time


async def died(database: Database, jobs: Jobs) -> None:
    """A job whose first attempt has ended, and that waits for its second."""
    await new_job(database, jobs, "died")
    lease = await claim(jobs)
    async with database.transaction() as connection:
        await jobs.begin_attempt(connection, lease)
        await jobs.end_attempt(connection, lease, "it died")
        await jobs.move(connection, await jobs.held(connection, lease), State.QUEUED, delay_seconds=300)


async def test_a_job_between_two_attempts_keeps_its_place_from_those_that_come_after_it(
    database: Database, jobs: Jobs
) -> None:
    await died(database, jobs)
    for id_, priority, kind in (("younger", 0, "work"), ("urgent", 5, "work"), ("other", 0, "other")):
        await new_job(database, jobs, id_, kind=kind, priority=priority)

    async def taken(places: int) -> str | None:
        lease = await jobs.claim(["work", "other"], "one", 60, places)
        return lease and lease.job.name.rpartition("/")[2]

    assert await taken(1) == "urgent", "which goes before it anyway"
    assert await taken(1) == "other", "whose kind is another"
    assert await taken(1) is None
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET not_before = now() WHERE name LIKE '%died'")
    assert [await taken(1), await taken(1)] == ["died", "younger"]


@pytest.mark.parametrize(
    "change",
    ["DELETE FROM job_attempts", "UPDATE job_attempts SET end_time = end_time - interval '11 minutes'"],
    ids=["before its first attempt", "long after its last"],
)
async def test_a_job_that_waits_for_what_an_attempt_needs_keeps_no_place(
    database: Database, jobs: Jobs, change: str
) -> None:
    await died(database, jobs)
    await new_job(database, jobs, "younger")
    assert await jobs.claim(["work"], "one", 60, 1) is None
    async with database.transaction() as connection:
        await connection.execute(change.encode())
    found = await jobs.claim(["work"], "one", 60, 1)
    assert found is not None and found.job.name.endswith("younger")


async def test_a_job_between_two_attempts_keeps_one_place_and_no_more(database: Database, jobs: Jobs) -> None:
    await died(database, jobs)
    await new_job(database, jobs, "younger")
    found = await jobs.claim(["work"], "one", 60, 2)
    assert found is not None and found.job.name.endswith("younger")


async def test_a_lease_that_ran_out_passes_on_and_the_old_token_writes_nothing(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    old = await claim(jobs, "one", 0.05)
    async with database.transaction() as connection:
        assert await jobs.begin_attempt(connection, old) == 1
    assert await jobs.claim(["work"], "two", 60) is None
    await asyncio.sleep(0.1)
    new = await claim(jobs, "two")
    assert new.taken_over
    assert new.job.sequence == old.job.sequence  # the same run goes on: no move, no event
    before = await stored(database, jobs, "j")

    async def refused(write) -> None:
        with pytest.raises(Aborted) as caught:
            async with database.transaction() as connection:
                await write(connection)
        assert caught.value.reason == "LEASE_LOST"

    await refused(lambda connection: jobs.held(connection, old))
    await refused(lambda connection: jobs.report(connection, old, {"step": 1}))
    await refused(lambda connection: jobs.begin_attempt(connection, old))
    await refused(lambda connection: jobs.end_attempt(connection, old, "ended by the old one"))
    with pytest.raises(Aborted):
        await jobs.heartbeat(old, 60)
    await jobs.release(old)
    assert await jobs.claim(["work"], "three", 60) is None  # the release of the old one freed nothing
    assert await stored(database, jobs, "j") == before
    async with database.transaction() as connection:
        (attempt,) = (await jobs.attempts(connection, [old.job.uid]))[old.job.uid]
        assert attempt.end_time is None
        assert await jobs.begin_attempt(connection, new, resumed_from_step=7) == 2
        first, second = (await jobs.attempts(connection, [old.job.uid]))[old.job.uid]
    assert (first.end_reason, second.end_reason) == ("its worker was lost", "")
    assert (first.end_time is not None, second.end_time, second.resumed_from_step) == (True, None, 7)


async def test_a_heartbeat_keeps_the_lease(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    lease = await claim(jobs, lease_seconds=0.3)
    for _ in range(4):
        await asyncio.sleep(0.15)
        assert (await jobs.heartbeat(lease, 0.3)).state is State.RUNNING
        assert await jobs.claim(["work"], "two", 60) is None


async def test_an_ended_job_is_nobodys(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    lease = await claim(jobs, lease_seconds=0)
    async with database.transaction() as connection:
        await jobs.move(connection, await jobs.held(connection, lease), State.SUCCEEDED)
    with pytest.raises(Aborted):
        await jobs.heartbeat(lease, 60)
    assert await jobs.claim(["work"], "two", 60) is None


async def test_progress_is_merged_and_is_no_change_of_state(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    lease = await claim(jobs)
    for progress in ({"step": 1, "phase": "train"}, {"step": 2}):
        async with database.transaction() as connection:
            await jobs.report(connection, lease, progress)
    job = await stored(database, jobs, "j")
    assert job.progress == {"step": 2, "phase": "train"}
    assert job.sequence == lease.job.sequence
    assert len(await rows(database, EVENTS)) == 2


CANCELS = {
    State.QUEUED: State.CANCELLED,
    State.RUNNING: State.CANCELLING,
    State.CANCELLING: State.CANCELLING,
}


async def test_cancel_in_each_state(database: Database, jobs: Jobs) -> None:
    for state in State:
        job = await put_into(database, await new_job(database, jobs, state.lower()), state)
        async with database.transaction() as connection:
            if state not in CANCELS:
                with pytest.raises(FailedPrecondition):
                    await jobs.cancel(connection, job.name)
                continue
            cancelled = await jobs.cancel(connection, job.name)
        assert cancelled.state is CANCELS[state]
        assert cancelled.sequence == job.sequence + (state is not CANCELS[state])


async def test_a_cancel_and_a_claim_at_once_leave_one_truth(database: Database, jobs: Jobs) -> None:
    for number in range(30):
        id_ = f"j{number}"
        await new_job(database, jobs, id_)

        async def cancel(id_: str = id_) -> None:
            async with database.transaction() as connection:
                await jobs.cancel(connection, f"{PROJECT}/trainingJobs/{id_}")

        lease, _ = await asyncio.gather(jobs.claim(["work"], "one", 60), cancel())
        state = (await stored(database, jobs, id_)).state
        assert state is (State.CANCELLED if lease is None else State.CANCELLING)


async def test_cancelling_jobs_of_a_dead_worker_are_claimed(database: Database, jobs: Jobs) -> None:
    job = await new_job(database, jobs, "j")
    await claim(jobs, lease_seconds=0)
    async with database.transaction() as connection:
        await jobs.cancel(connection, job.name)
    lease = await claim(jobs, "two")
    assert (lease.taken_over, lease.job.state) == (True, State.CANCELLING)


async def test_text_that_postgres_cannot_store(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    lease = await claim(jobs)
    async with database.transaction() as connection:
        await jobs.begin_attempt(connection, lease)
        await jobs.end_attempt(connection, lease, "a\0b")
        failed = PlatformError("INTERNAL", "a\0b\udcff", path="\0")
        job = await jobs.move(connection, await jobs.held(connection, lease), State.FAILED, failed)
    assert job.error is not None
    assert (job.error["message"], job.error["metadata"]) == ("a?b?", {"path": "?"})
    for spec in ({"text": "a\0b"}, {"a\0b": 1}):
        with pytest.raises(InvalidArgument, match="NUL"):
            async with database.transaction() as connection:
                await jobs.create(connection, "work", f"{PROJECT}/trainingJobs/n", spec)
    with pytest.raises(InvalidArgument, match="NUL"):
        await stored(database, jobs, "a\0b")


async def test_each_of_200_jobs_is_claimed_once_by_8_claimers(database: Database, jobs: Jobs) -> None:
    async with database.transaction() as connection:
        for number in range(200):
            await jobs.create(connection, "work", f"{PROJECT}/trainingJobs/j{number}", {})
    claimed: list[str] = []

    async def work(owner: str) -> None:
        while (lease := await jobs.claim(["work"], owner, 60)) is not None:
            claimed.append(lease.job.name)
            async with database.transaction() as connection:
                await jobs.move(connection, await jobs.held(connection, lease), State.SUCCEEDED)

    await asyncio.gather(*(work(str(number)) for number in range(8)))
    assert len(claimed) == len(set(claimed)) == 200
    assert await rows(database, "SELECT DISTINCT state, sequence, lease_token FROM jobs") == [("SUCCEEDED", 3, None)]
    per_job = await rows(database, "SELECT array_agg(sequence ORDER BY ordinal) FROM events GROUP BY resource")
    assert per_job == [([1, 2, 3],)] * 200


async def test_lists_are_newest_first_by_parent_kind_and_state(database: Database, jobs: Jobs) -> None:
    for number in range(7):
        await new_job(database, jobs, f"j{number}")
        await asyncio.sleep(0.002)
    await new_job(database, jobs, "other", kind="other")
    running = await claim(jobs)

    async def listed(size: int, token: str = "", *states: State) -> tuple[list[str], str]:
        page = PageRequest.parse(size, token, PROJECT, states)
        async with database.transaction() as connection:
            found = await jobs.list(connection, "work", PROJECT, states, page)
        return [job.name.rpartition("/")[2] for job in found.items], found.next_token

    first, token = await listed(3)
    await new_job(database, jobs, "late")
    second, token = await listed(3, token)
    third, end = await listed(3, token)
    assert first + second + third == ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]
    assert end == ""
    assert await listed(7, "", State.RUNNING) == ([running.job.name.rpartition("/")[2]], "")
    forged = PageRequest.parse(1, "", PROJECT, ()).token(("no uuid",))
    with pytest.raises(InvalidArgument, match="not a token"):
        await listed(1, forged)


async def test_the_event_of_a_resource_is_written_once_per_sequence(database: Database, jobs: Jobs) -> None:
    job = await new_job(database, jobs, "j")
    log = EventLog(database)
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with database.transaction() as connection:
            await announce_in(log)(connection, job, None)


async def test_an_event_that_is_no_move_takes_the_next_sequence(database: Database, jobs: Jobs) -> None:
    seen = await new_job(database, jobs, "j")
    async with database.transaction() as connection:
        assert await jobs.next_sequence(connection, seen.uid) == seen.sequence + 1
    with pytest.raises(Aborted):
        async with database.transaction() as connection:
            await jobs.move(connection, seen, State.RUNNING)
    now = await stored(database, jobs, "j")
    async with database.transaction() as connection:
        assert (await jobs.move(connection, now, State.RUNNING)).sequence == seen.sequence + 2
