"""A clock that jumps: what was written before has its times moved, which is the same as moving the clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import services
from services.mesh.db.postgres import Database
from services.mesh.errors import Aborted
from services.mesh.jobs.store import Jobs, State
from tests.fix_member import new_job, stored

HOUR = 3600
ROOT = Path(services.__path__[0])
# Where the wall clock is right: it stamps records for people, orders ids, shows ages.
MAY_READ_THE_CLOCK = {
    "cli/display.py",
    "cli/doctor_checks.py",
    # A ticket's end is in the ticket, which no database knows: set back, the clock lengthens the life of those out.
    "gateway/security/tickets.py",
    # Beside the ages of files; who stored one that was removed too early finds it missing, and stores it again.
    "mesh/artifacts/gc.py",
    "mesh/names.py",
    # Beside the ages of files, which the file system dates by that clock; what changed since the last look stays.
    "mesh/db/expiry.py",
    "mesh/runs/follower.py",
    # Retry-After names a date of the other side's clock; what comes of it is bounded.
    "rewards/judges/http_client.py",
    "mesh/runs/spans.py",
    "mesh/runs/spool.py",
}


async def set_clock(database: Database, seconds: int) -> None:
    """As if the machine's clock had been set forward by so much, or back."""
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE jobs SET not_before = not_before - make_interval(secs => %(by)s), create_time = create_time -"
            " make_interval(secs => %(by)s), lease_expires_at = lease_expires_at - make_interval(secs => %(by)s)",
            {"by": seconds},
        )


async def test_job_queued_before_the_clock_was_set_back_is_run(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    await set_clock(database, -HOUR)
    lease = await jobs.claim(["work"], "one", 15)
    assert lease is not None
    assert not lease.taken_over


async def test_job_of_a_dead_worker_is_taken_over_though_the_clock_was_set_back(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    assert await jobs.claim(["work"], "dead", 15) is not None
    assert await jobs.claim(["work"], "two", 15) is None
    await set_clock(database, -HOUR)
    lease = await jobs.claim(["work"], "two", 15)
    assert lease is not None
    assert lease.taken_over


async def test_holder_that_lives_renews_before_anybody_may_think_it_dead(database: Database, jobs: Jobs) -> None:
    await new_job(database, jobs, "j")
    lease = await jobs.claim(["work"], "one", 15)
    assert lease is not None
    await set_clock(database, -HOUR)
    await jobs.heartbeat(lease, 15)
    assert await jobs.claim(["work"], "two", 15) is None


async def test_clock_set_forward_hands_the_job_over_once_and_the_old_holder_writes_nothing(
    database: Database, jobs: Jobs
) -> None:
    await new_job(database, jobs, "j")
    old = await jobs.claim(["work"], "one", 15)
    assert old is not None
    await set_clock(database, HOUR)
    new = await jobs.claim(["work"], "two", 15)
    assert new is not None
    assert await jobs.claim(["work"], "three", 15) is None
    with pytest.raises(Aborted):
        await jobs.heartbeat(old, 15)
    async with database.transaction() as connection:
        await jobs.report(connection, new, {"step": 1})
    assert (await stored(database, jobs, "j")).progress == {"step": 1}


async def test_pause_of_a_retry_is_bounded(database: Database, jobs: Jobs) -> None:
    """Else the bound that tells a clock set back would end a pause that was meant."""
    await new_job(database, jobs, "j")
    lease = await jobs.claim(["work"], "one", 15)
    assert lease is not None
    async with database.transaction() as connection:
        await jobs.move(connection, await jobs.held(connection, lease), State.QUEUED, delay_seconds=10 * HOUR)
    assert await jobs.claim(["work"], "two", 15) is None


def test_only_what_people_read_is_stamped_with_the_wall_clock() -> None:
    """Deadlines count on the monotonic clock, leases on the database's."""
    readers = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and f"{ast.unparse(node)}" in (
                *("time.time", "time.time_ns", "datetime.now", "datetime.utcnow"),
            ):
                readers.add(path.relative_to(ROOT).as_posix())
    assert readers <= MAY_READ_THE_CLOCK
