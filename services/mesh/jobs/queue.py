"""The queue in the table of jobs: which one a worker takes next, and behind what each of the others waits."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.mesh.db.postgres import Connection
from services.mesh.jobs.model import Job, State

# A time to come that lies further away than this was written before the clock was set back, and is not waited for. For
# a lease it is at least so many times its length, as workers may differ in that.
LONGEST_DELAY_SECONDS = 600.0
_LONGEST_LEASES = 10
# Jobs between two attempts. Their places are kept for as long as one pause may last, and not for whoever waits for ever
# for what an attempt needs.
_PAUSING = """
SELECT kind, priority, create_time, uid FROM jobs
WHERE end_time IS NULL AND state = 'QUEUED' AND not_before > now()
  AND not_before <= now() + make_interval(secs => %(longest_delay)s)
  AND EXISTS (SELECT FROM job_attempts AS attempt WHERE attempt.job_uid = jobs.uid
              AND attempt.end_time > now() - make_interval(secs => %(longest_delay)s))
"""
# The row that a worker takes next: who waits and whose time has come, or whose holder's lease ran out.
NEXT = f"""
WITH pausing AS MATERIALIZED ({_PAUSING})
SELECT {{columns}} FROM jobs WHERE kind = ANY(%(kinds)s) AND end_time IS NULL AND (
  (state = 'QUEUED'
   AND (not_before <= now() OR not_before > now() + make_interval(secs => %(longest_delay)s))
   AND (%(places)s::integer IS NULL OR %(places)s > (
     SELECT count(*) FROM pausing AS ahead WHERE ahead.kind = jobs.kind
     AND (-ahead.priority, ahead.create_time, ahead.uid) < (-jobs.priority, jobs.create_time, jobs.uid))))
  OR
  (state IN ('RUNNING', 'CANCELLING')
   AND (lease_expires_at < now() OR lease_expires_at > now() + make_interval(secs => %(longest_lease)s))))
ORDER BY priority DESC, create_time, uid LIMIT 1 FOR UPDATE SKIP LOCKED
"""
# A job that holds a lease and waits for Ray: other jobs have the slots.
WAITING_FOR_SLOTS = "waiting_for_slots"
_MOST_NAMED = 20
# All kinds: they share the workers. In the order of NEXT.
_OPEN = """
SELECT uid, name, state, waits_for_slots, retry_time, place FROM (
  SELECT uid, name, state, progress ->> 'phase' IS NOT DISTINCT FROM %(phase)s AS waits_for_slots,
         CASE WHEN not_before > now() THEN not_before END AS retry_time,
         row_number() OVER (PARTITION BY state = 'QUEUED'
                            ORDER BY priority DESC, create_time, uid) AS place
  FROM jobs WHERE end_time IS NULL
) AS open WHERE place <= %(most)s OR uid = ANY(%(uids)s) ORDER BY place
"""


def next_parameters(kinds: Iterable[str], lease_seconds: float, places: int | None) -> dict[str, Any]:
    """Parameters of NEXT, for a worker that takes `places` more jobs; None leaves no place to jobs that pause."""
    return {
        "kinds": list(kinds),
        "places": places,
        "longest_delay": LONGEST_DELAY_SECONDS,
        "longest_lease": max(LONGEST_DELAY_SECONDS, _LONGEST_LEASES * lease_seconds),
    }


@dataclass(frozen=True)
class QueuePosition:
    """`running` and `ahead` are resource names, at most so many; `retry_time` is in the future."""

    running: tuple[str, ...]
    ahead: tuple[str, ...]
    ahead_count: int
    retry_time: datetime | None


def waits(job: Job) -> bool:
    """For a worker, or for slots."""
    return job.state is State.QUEUED or (job.state is State.RUNNING and job.progress.get("phase") == WAITING_FOR_SLOTS)


async def positions(connection: Connection, jobs: Iterable[Job]) -> dict[uuid.UUID, QueuePosition]:
    """Positions of the jobs that wait: one query, and none where none waits."""
    uids = [job.uid for job in jobs if waits(job)]
    if not uids:
        return {}
    cursor = await connection.execute(
        _OPEN.encode(), {"phase": WAITING_FOR_SLOTS, "most": _MOST_NAMED + 1, "uids": uids}
    )
    found = await cursor.fetchall()
    queue = [name for _, name, state, *_ in found if state == State.QUEUED]
    running = [(name, waiting) for _, name, state, waiting, *_ in found if state != State.QUEUED]
    told: dict[uuid.UUID, QueuePosition] = {}
    for uid, name, state, _, retry_time, place in found:
        if uid not in uids:
            continue
        queued = state == State.QUEUED
        holders = [other for other, waiting in running if other != name and (queued or not waiting)]
        count = place - 1 if queued else 0
        ahead = queue[: min(count, _MOST_NAMED)]
        told[uid] = QueuePosition(tuple(holders[:_MOST_NAMED]), tuple(ahead), count, retry_time if queued else None)
    return told
