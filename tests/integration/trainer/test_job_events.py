"""The stream of a job's events, whatever the log holds of them."""

from __future__ import annotations

import asyncio
from typing import Any

from services.mesh.db.postgres import Database
from services.mesh.events.outbox import EventLog
from services.mesh.jobs.store import Jobs, State
from services.trainer.training.service import TrainingJobs
from tests.fix_member import new_job, rows


async def test_moves_that_the_log_does_not_hold_are_passed_over(
    database: Database, event_log: EventLog, jobs: Jobs
) -> None:
    """And not looked for over and over: the stream would never get to the end of the job."""
    job = await new_job(database, jobs, "a")
    async with database.transaction() as connection:
        await jobs.cancel(connection, job.name)
        await connection.execute("DELETE FROM events WHERE sequence = 2")
    nobody: Any = None
    use_cases = TrainingJobs(database, jobs, event_log, nobody, nobody)
    async with asyncio.timeout(20):
        found = [event async for event in use_cases.events(job.name, 0, stored_only=False)]
    assert [event.sequence for event in found if event is not None] == [1]
    assert await rows(database, "SELECT state, sequence FROM jobs") == [(State.CANCELLED, 2)]
