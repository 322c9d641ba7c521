"""Behind what a job waits: read from the table of jobs whenever a job that waits is shown."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from services.mesh.job import Job, State
from services.mesh.postgres import Connection

# A job that holds a lease and waits for Ray: other jobs have the slots.
WAITING_FOR_SLOTS = "waiting_for_slots"
_MOST_NAMED = 20
# All kinds: they share the workers. In the order in which a worker takes them, see `Jobs.claim`.
_OPEN = """
SELECT uid, name, state, waits_for_slots, retry_time, place FROM (
  SELECT uid, name, state, progress ->> 'phase' IS NOT DISTINCT FROM %(phase)s AS waits_for_slots,
         CASE WHEN not_before > now() THEN not_before END AS retry_time,
         row_number() OVER (PARTITION BY state = 'QUEUED'
                            ORDER BY priority DESC, create_time, uid) AS place
  FROM jobs WHERE end_time IS NULL
) AS open WHERE place <= %(most)s OR uid = ANY(%(uids)s) ORDER BY place
"""


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
