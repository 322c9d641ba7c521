"""The worker's loop: every way a handler can end, cancelling, losing the lease, stopping, dying."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.mesh.db import postgres
from services.mesh.db.postgres import Database
from services.mesh.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, Unavailable, Violation
from services.mesh.jobs import worker
from services.mesh.jobs.model import Lease, State
from services.mesh.jobs.store import Jobs
from services.mesh.jobs.worker import JobResult, Retry, Worker
from services.supervisor import embedded
from services.supervisor.embedded import process
from tests.fix_member import PROJECT, background, new_job, rows, stored, until

Body = Callable[[Lease, asyncio.Event], Awaitable[JobResult]]
DONE = JobResult(State.SUCCEEDED)


class Calls:
    """A handler that keeps its leases and does what the test says."""

    def __init__(self, body: Body | None = None) -> None:
        self.leases: list[Lease] = []
        self.now = 0
        self.most = 0
        self._body = body

    async def run(self, lease: Lease, cancelled: asyncio.Event) -> JobResult:
        self.leases.append(lease)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return DONE if self._body is None else await self._body(lease, cancelled)
        finally:
            self.now -= 1


@contextlib.asynccontextmanager
async def working(
    database: Database, jobs: Jobs, handler: Calls, *, name: str = "w", concurrency: int = 2, lease_seconds: float = 5
) -> AsyncIterator[asyncio.Task[None]]:
    it = Worker(name, database, jobs, {"work": handler}, concurrency=concurrency, lease_seconds=lease_seconds)
    async with background(it.run()) as task:
        yield task


async def is_in(database: Database, jobs: Jobs, id_: str, state: State) -> bool:
    return (await stored(database, jobs, id_)).state is state


async def counts(database: Database, query: str, number: int) -> bool:
    return (await rows(database, query)) == [(number,)]


async def run_one(database: Database, jobs: Jobs, body: Body, state: State):
    """The job `j` after a worker has brought it to `state`."""
    await new_job(database, jobs, "j")
    async with working(database, jobs, Calls(body)):
        await until(lambda: is_in(database, jobs, "j", state))
    return await stored(database, jobs, "j")


def raises(error: Exception) -> Body:
    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        raise error

    return body


def ends(ending: JobResult) -> Body:
    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        return ending

    return body


async def test_a_job_is_run_at_once_and_succeeds(database: Database, jobs: Jobs) -> None:
    handler = Calls()
    async with working(database, jobs, handler):
        await asyncio.sleep(0.3)  # idle by now
        await new_job(database, jobs, "j")
        await until(lambda: is_in(database, jobs, "j", State.SUCCEEDED), 1.5)  # woken, not found by polling at 2 s
    (lease,) = handler.leases
    assert (lease.job.state, lease.taken_over) == (State.RUNNING, False)


async def test_a_platform_error_is_the_jobs_error(database: Database, jobs: Jobs) -> None:
    error = InvalidArgument([Violation("rows[3]", "no messages")], "INVALID_ROWS")
    job = await run_one(database, jobs, raises(error), State.FAILED)
    assert job.error == {
        "code": "INVALID_ARGUMENT", "reason": "INVALID_ROWS", "message": "rows[3]: no messages", "metadata": {},
    }  # fmt: skip


@pytest.mark.parametrize("error", [ValueError("hunter2"), asyncio.CancelledError(), Aborted("UPLOAD_CHANGED", "x")])
async def test_any_other_error_fails_the_job(database: Database, jobs: Jobs, error: Exception) -> None:
    job = await run_one(database, jobs, raises(error), State.FAILED)
    assert job.error is not None
    assert job.error["reason"] == ("UPLOAD_CHANGED" if isinstance(error, Aborted) else "INTERNAL")
    assert "hunter2" not in job.error["message"]


async def test_what_belongs_to_the_ending_shares_its_transaction(database: Database, jobs: Jobs) -> None:
    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        async def then(connection) -> None:
            await jobs.report(connection, lease, {"rows": 7})

        return JobResult(State.SUCCEEDED, then=then)

    assert (await run_one(database, jobs, body, State.SUCCEEDED)).progress == {"rows": 7}


@pytest.mark.parametrize(
    ("error", "reason"), [(AlreadyExists("TAKEN", "taken"), "TAKEN"), (ZeroDivisionError(), "INTERNAL")]
)
async def test_an_ending_that_cannot_be_written_fails_the_job_once(
    database: Database, jobs: Jobs, error: Exception, reason: str
) -> None:
    async def then(connection) -> None:
        await connection.execute("UPDATE jobs SET priority = 99")
        raise error

    job = await run_one(database, jobs, ends(JobResult(State.SUCCEEDED, then=then)), State.FAILED)
    assert job.error is not None
    assert (job.error["reason"], job.priority, job.sequence) == (reason, 0, 3)


async def test_an_ending_that_the_table_forbids_fails_the_job(database: Database, jobs: Jobs) -> None:
    job = await run_one(database, jobs, ends(JobResult(State.CANCELLED)), State.FAILED)  # nobody asked for it
    assert job.error is not None
    assert job.error["reason"] == "WRONG_STATE"


def test_a_job_ends_in_an_end() -> None:
    for state in (State.QUEUED, State.RUNNING, State.CANCELLING):
        with pytest.raises(ValueError, match=state):
            JobResult(state)


async def test_a_retry_is_another_attempt(database: Database, jobs: Jobs) -> None:
    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        async with database.transaction() as connection:
            number = await jobs.begin_attempt(connection, lease)
        if number < 3:
            raise Retry(f"attempt {number} crashed", 0.01)
        return DONE

    job = await run_one(database, jobs, body, State.SUCCEEDED)
    async with database.transaction() as connection:
        attempts = (await jobs.attempts(connection, [job.uid]))[job.uid]
    assert [attempt.end_reason for attempt in attempts] == ["attempt 1 crashed", "attempt 2 crashed", ""]
    assert job.sequence == 1 + 2 * 3  # RUNNING and QUEUED twice, RUNNING and SUCCEEDED


async def test_what_is_away_for_a_while_fails_nothing(
    database: Database, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "AWAY_SECONDS", 0.1)
    handler = Calls()

    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        if len(handler.leases) < 3:
            raise Unavailable("DATASETS_AWAY", "the dataset service is restarting")
        return DONE

    handler._body = body
    await new_job(database, jobs, "j")
    async with working(database, jobs, handler):
        await until(lambda: is_in(database, jobs, "j", State.SUCCEEDED))
    assert [lease.taken_over for lease in handler.leases] == [False, True, True]
    assert (await stored(database, jobs, "j")).sequence == 3  # it was RUNNING all the while


async def test_cancel_reaches_the_handler_at_once(database: Database, jobs: Jobs) -> None:
    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        await cancelled.wait()
        return JobResult(State.CANCELLED)

    job = await new_job(database, jobs, "j")
    async with working(database, jobs, Calls(body), lease_seconds=60):
        await until(lambda: is_in(database, jobs, "j", State.RUNNING))
        await asyncio.sleep(0.3)
        async with database.transaction() as connection:
            await jobs.cancel(connection, job.name)
        await until(lambda: is_in(database, jobs, "j", State.CANCELLED), 3)  # a heartbeat alone would take 20 s


@pytest.mark.parametrize(
    ("body", "state"),
    [
        (ends(DONE), State.SUCCEEDED),
        (raises(Retry("r", 9)), State.CANCELLED),
        (raises(NotFound("N", "")), State.FAILED),
    ],
)
async def test_other_endings_of_a_job_that_is_being_cancelled(
    database: Database, jobs: Jobs, body: Body, state: State
) -> None:
    async def wait_then(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        await cancelled.wait()
        return await body(lease, cancelled)

    job = await new_job(database, jobs, "j")
    async with working(database, jobs, Calls(wait_then)):
        await until(lambda: is_in(database, jobs, "j", State.RUNNING))
        async with database.transaction() as connection:
            await jobs.cancel(connection, job.name)
        await until(lambda: is_in(database, jobs, "j", state))


async def test_no_more_jobs_at_once_than_allowed(database: Database, jobs: Jobs) -> None:
    together = asyncio.Barrier(3)

    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        await together.wait()
        await asyncio.sleep(0.05)
        return DONE

    handler = Calls(body)
    for number in range(9):
        await new_job(database, jobs, f"j{number}")
    async with working(database, jobs, handler, concurrency=3):
        await until(lambda: len(handler.leases) == 9 and handler.now == 0)
    assert handler.most == 3


async def test_workers_share_the_queue_and_run_each_job_once(database: Database, jobs: Jobs) -> None:
    handler = Calls()
    for number in range(60):
        await new_job(database, jobs, f"j{number}")
    async with contextlib.AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(working(database, jobs, handler, name=f"w{number}", concurrency=4))
        done = "SELECT count(*) FROM jobs WHERE state = 'SUCCEEDED'"
        await until(lambda: counts(database, done, 60))
    assert set(Counter(lease.job.name for lease in handler.leases).values()) == {1}


async def test_a_long_job_keeps_its_lease(database: Database, jobs: Jobs) -> None:
    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        await asyncio.sleep(1.5)
        return DONE

    handler, other = Calls(body), Calls()
    await new_job(database, jobs, "j")
    async with working(database, jobs, handler, lease_seconds=0.6):
        await until(lambda: bool(handler.leases))
        async with working(database, jobs, other, name="other", lease_seconds=0.6):
            await until(lambda: is_in(database, jobs, "j", State.SUCCEEDED))
    assert not other.leases


async def test_who_lost_the_lease_stops_and_writes_nothing(database: Database, jobs: Jobs) -> None:
    stopped = asyncio.Event()

    async def endless(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return DONE

    handler = Calls(endless)
    await new_job(database, jobs, "j")
    async with working(database, jobs, handler, lease_seconds=0.9):
        await until(lambda: bool(handler.leases))
        async with database.transaction() as connection:  # as another worker would after a pause of this one
            await connection.execute("UPDATE jobs SET lease_token = gen_random_uuid(), lease_owner = 'other'")
            await connection.execute("UPDATE jobs SET lease_expires_at = now() + interval '5 minutes'")
        await asyncio.wait_for(stopped.wait(), 5)
        await asyncio.sleep(0.1)
    assert await rows(database, "SELECT state, sequence, lease_owner FROM jobs") == [("RUNNING", 2, "other")]


async def test_a_worker_that_stops_lets_another_go_on_at_once(database: Database, jobs: Jobs) -> None:
    order: list[str] = []

    async def endless(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            order.append("first has stopped")
        return DONE

    async def second(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        order.append("second has started")
        return DONE

    first, handler = Calls(endless), Calls(second)
    await new_job(database, jobs, "j")
    async with working(database, jobs, first, lease_seconds=500) as task:
        await until(lambda: bool(first.leases))
        async with working(database, jobs, handler, name="other"):
            task.cancel()
            await until(lambda: is_in(database, jobs, "j", State.SUCCEEDED), 1.5)
    assert order == ["first has stopped", "second has started"]
    assert handler.leases[0].taken_over


async def test_what_has_ended_is_not_run_again_because_the_worker_stops(database: Database, jobs: Jobs) -> None:
    writing = asyncio.Event()

    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        async def then(connection) -> None:
            writing.set()
            await connection.execute("SELECT pg_sleep(0.3)")

        return JobResult(State.SUCCEEDED, then=then)

    await new_job(database, jobs, "j")
    async with working(database, jobs, Calls(body)) as task:
        await asyncio.wait_for(writing.wait(), 10)
        task.cancel()
    assert (await stored(database, jobs, "j")).state is State.SUCCEEDED


async def test_reports_do_not_make_heartbeats(database: Database, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are many, and heartbeats keep their own pace: writes are not doubled."""
    beats = 0
    heartbeat = jobs.heartbeat

    async def counted(*arguments):
        nonlocal beats
        beats += 1
        return await heartbeat(*arguments)

    monkeypatch.setattr(jobs, "heartbeat", counted)

    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        for step in range(100):
            async with database.transaction() as connection:
                await jobs.report(connection, lease, {"step": step})
            await asyncio.sleep(0.005)
        return DONE

    job = await run_one(database, jobs, body, State.SUCCEEDED)
    assert job.progress == {"step": 99}
    assert beats < 50


async def test_the_database_is_killed_while_a_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler goes on, and its ending is written when the server is back."""
    monkeypatch.setattr(postgres, "CHECKOUT_TIMEOUT_SECONDS", 1.0)
    server = embedded.Postgres(tmp_path / "pg", embedded.free_port())  # durable: what was committed must be there
    program = server.program(tmp_path / "log")
    finish = asyncio.Event()

    async def body(lease: Lease, cancelled: asyncio.Event) -> JobResult:
        await finish.wait()
        return DONE

    handler = Calls(body)
    async with process.running(program) as running:
        database = Database(server.url, "testing")
        await database.migrate("services.mesh")
        jobs = Jobs(database, nothing)
        await database.__aenter__()
        await new_job(database, jobs, "j")
        task = asyncio.create_task(
            Worker("w", database, jobs, {"work": handler}, concurrency=2, lease_seconds=0.5).run()
        )
        await until(lambda: bool(handler.leases))
        running.kill()
        await running.wait()
    finish.set()
    await asyncio.sleep(1)
    async with process.running(program):
        await until(lambda: is_in(database, jobs, "j", State.SUCCEEDED))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await rows(database, "SELECT sequence FROM jobs") == [(3,)]
        await database.__aexit__()


async def nothing(*_: object) -> None:
    """Announces no move."""


PROGRAM = """
import asyncio, json, sys
from services.mesh.jobs.store import Jobs, State
from services.mesh.db.postgres import Database
from services.mesh.rpc.server import Process
from services.mesh.jobs.worker import JobResult, Worker

url, schema, journal = sys.argv[1:]
database = Database(url, schema)

async def nothing(*_):
    pass

class Handler:
    async def run(self, lease, cancelled):
        async with database.transaction() as connection:
            attempt = await jobs.begin_attempt(connection, lease)
        with open(journal, "a") as file:
            file.write(json.dumps([attempt, lease.taken_over]) + "\\n")
        if attempt == 1:
            await asyncio.sleep(3600)
        return JobResult(State.SUCCEEDED)

jobs = Jobs(database, nothing)
process = Process("worker")
process.add(database)
worker = Worker("w", database, jobs, {"work": Handler()}, concurrency=1, lease_seconds=1)
process.add_routine("worker", worker.run)
asyncio.run(process.run())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
async def test_a_worker_process_dies_and_another_takes_over(
    database: Database, shared_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    """Killed, told to stop, or frozen: the second worker runs the job once, and a thawed first one changes nothing."""
    jobs, journal = Jobs(database, nothing), tmp_path / "journal"
    await new_job(database, jobs, "j")

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, shared_url, database.schema, str(journal))
        )

    first = await start()
    await until(journal.exists, 20)
    os.kill(first.pid, how)
    second = await start()
    try:
        await until(lambda: is_in(database, jobs, "j", State.SUCCEEDED), 20)
        if how is signal.SIGSTOP:
            os.kill(first.pid, signal.SIGCONT)
            await asyncio.sleep(1)
    finally:
        for worker_process in (first, second):
            with contextlib.suppress(ProcessLookupError):
                worker_process.kill()
            await worker_process.wait()
    assert [json.loads(line) for line in journal.read_text().splitlines()] == [[1, False], [2, True]]
    attempts = await rows(database, "SELECT number, end_reason FROM job_attempts ORDER BY number")
    assert attempts == [(1, "its worker was lost"), (2, "")]
    assert await rows(database, "SELECT state, sequence FROM jobs") == [("SUCCEEDED", 3)]
    assert (await stored(database, jobs, "j")).name == f"{PROJECT}/trainingJobs/j"
