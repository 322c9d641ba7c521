"""Work that outlasts a call: a row that one worker at a time holds by a lease.

State moves only along TRANSITIONS. Each move raises the job's `sequence` and writes one event in the same transaction;
that log feeds streams, NATS and audit. A worker's writes carry its lease token and fail once somebody else holds it.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from services.mesh import names
from services.mesh.db.postgres import Connection, Database, is_unique_violation
from services.mesh.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PlatformError
from services.mesh.events.outbox import last_sequence
from services.mesh.jobs.model import TERMINAL, TRANSITIONS, Attempt, Job, Lease, State, error_to_json, storable
from services.mesh.jobs.queue import LONGEST_DELAY_SECONDS, NEXT, next_parameters
from services.mesh.rpc.pagination import Page, PageRequest
from services.mesh.telemetry import tracing

__all__ = [
    "QUEUE_TOPIC",
    "TERMINAL",
    "TRANSITIONS",
    "Attempt",
    "Job",
    "Jobs",
    "Lease",
    "OnTransition",
    "State",
    "job_topic",
    "progress_topic",
]

QUEUE_TOPIC = "queue"

# Writes the event of a change, given the job as it is now and the state before; None for a new job.
OnTransition = Callable[[Connection, Job, State | None], Awaitable[None]]

_COLUMNS = (
    "uid, kind, name, parent, state, priority, sequence, spec, progress, error, create_time, start_time, end_time,"
    " traceparent"
)


class Jobs:
    """The jobs of one service."""

    def __init__(self, database: Database, announce: OnTransition) -> None:
        self._database = database
        self._announce = announce

    async def create(
        self, connection: Connection, kind: str, name: str, spec: Mapping[str, Any], priority: int = 0
    ) -> Job:
        """A new job in QUEUED. Raises AlreadyExists when the name is taken."""
        parent = name.rsplit("/", 2)[0]
        sequence = await last_sequence(connection, name) + 1
        try:
            job = await self._one(
                connection,
                f"INSERT INTO jobs (uid, kind, name, parent, state, priority, spec, traceparent, sequence)"
                f" VALUES (%s, %s, %s, %s, 'QUEUED', %s, %s, %s, %s) RETURNING {_COLUMNS}",
                (names.uuid7(), kind, name, parent, priority, Jsonb(dict(spec)), tracing.traceparent(), sequence),
            )
        except Exception as error:
            if is_unique_violation(error, "jobs_name_key"):
                raise AlreadyExists("JOB_ALREADY_EXISTS", f"{name} exists already", name=name) from None
            raise
        assert job is not None
        await self._announce(connection, job, None)
        await self._database.notify(connection, QUEUE_TOPIC)
        return job

    async def get(self, connection: Connection, name: str) -> Job:
        """Raises NotFound."""
        job = await self._one(connection, f"SELECT {_COLUMNS} FROM jobs WHERE name = %s", (name,))
        if job is None:
            raise NotFound("JOB_NOT_FOUND", f"there is no {name}", name=name)
        return job

    async def list(
        self, connection: Connection, kind: str, parent: str, states: Iterable[State], page: PageRequest
    ) -> Page[Job]:
        """Newest first."""
        before = _uid(page)
        wanted = [str(state) for state in states]
        async with connection.cursor(row_factory=class_row(Job)) as cursor:
            await cursor.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE kind = %(kind)s AND parent = %(parent)s"
                " AND (%(states)s::text[] = '{}' OR state = ANY(%(states)s))"
                " AND (%(before)s::uuid IS NULL OR uid < %(before)s) ORDER BY uid DESC LIMIT %(limit)s",
                {"kind": kind, "parent": parent, "states": wanted, "before": before, "limit": page.size + 1},
            )
            rows = await cursor.fetchall()
        return page.page(rows, lambda job: (str(job.uid),))

    async def attempts(self, connection: Connection, uids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Attempt]]:
        """Oldest first, by job."""
        wanted = list(uids)
        found: dict[uuid.UUID, list[Attempt]] = {uid: [] for uid in wanted}
        cursor = await connection.execute(
            "SELECT job_uid, number, start_time, end_time, end_reason, resumed_from_step FROM job_attempts"
            " WHERE job_uid = ANY(%s) ORDER BY job_uid, number",
            (wanted,),
        )
        async for uid, *values in cursor:
            found[uid].append(Attempt(*values))
        return found

    async def cancel(self, connection: Connection, name: str) -> Job:
        """QUEUED → CANCELLED, RUNNING → CANCELLING; CANCELLING stays. Raises FailedPrecondition from an end state."""
        job = await self.lock(connection, name)
        if job.state is State.CANCELLING:
            return job
        return await self.move(connection, job, State.CANCELLED if job.state is State.QUEUED else State.CANCELLING)

    async def move(
        self, connection: Connection, job: Job, to: State, error: PlatformError | None = None, delay_seconds: float = 0
    ) -> Job:
        """Change the state of a job whose row this transaction has locked; frees the lease unless it goes on running.

        Raises FailedPrecondition when the table does not allow it, Aborted when `job` is no longer how the row stands.
        """
        if to not in TRANSITIONS[job.state]:
            message = f"{job.name} is {job.state} and cannot become {to}"
            raise FailedPrecondition("WRONG_STATE", message, name=job.name, state=job.state)
        moved = await self._one(
            connection,
            "UPDATE jobs SET state = %(to)s, sequence = sequence + 1, error = %(error)s,"
            " start_time = CASE WHEN %(to)s = 'RUNNING' THEN coalesce(start_time, now()) ELSE start_time END,"
            " end_time = CASE WHEN %(end)s THEN now() END,"
            " not_before = now() + make_interval(secs => %(delay)s),"
            " lease_token = CASE WHEN %(held)s THEN lease_token END,"
            " lease_owner = CASE WHEN %(held)s THEN lease_owner END,"
            " lease_expires_at = CASE WHEN %(held)s THEN lease_expires_at END"
            f" WHERE uid = %(uid)s AND sequence = %(sequence)s RETURNING {_COLUMNS}",
            {
                "to": str(to),
                "error": Jsonb(error_to_json(error)) if error else None,
                "end": to in TERMINAL,
                "held": to in (State.RUNNING, State.CANCELLING),
                "delay": min(delay_seconds, LONGEST_DELAY_SECONDS),
                "uid": job.uid,
                "sequence": job.sequence,
            },
        )
        if moved is None:
            raise Aborted("JOB_CHANGED", f"{job.name} has changed meanwhile; read it again", name=job.name)
        with tracing.below(job.traceparent):
            await self._announce(connection, moved, job.state)
        await self._database.notify(connection, job_topic(job.name))
        await self._database.notify(connection, QUEUE_TOPIC)
        return moved

    async def claim(
        self, kinds: Iterable[str], owner: str, lease_seconds: float, places: int | None = None
    ) -> Lease | None:
        """The most urgent job that waits or whose holder's lease ran out; None when there is nothing to do.

        With `places`, how many more jobs the worker takes, one is left to each job that pauses between two attempts:
        no job of its kind that comes after it gets that place meanwhile.
        """
        token = uuid.uuid4()
        async with self._database.transaction() as connection:
            parameters = next_parameters(kinds, lease_seconds, places)
            job = await self._one(connection, NEXT.format(columns=_COLUMNS), parameters)
            if job is None:
                return None
            await connection.execute(
                "UPDATE jobs SET lease_owner = %s, lease_token = %s,"
                " lease_expires_at = now() + make_interval(secs => %s) WHERE uid = %s",
                (owner, token, lease_seconds, job.uid),
            )
            taken_over = job.state is not State.QUEUED
            if not taken_over:
                job = await self.move(connection, job, State.RUNNING)
            return Lease(job, owner, token, taken_over)

    async def heartbeat(self, lease: Lease, lease_seconds: float) -> Job:
        """Renew the lease; returns the job as it stands. Raises Aborted when it is somebody else's by now."""
        async with self._database.transaction() as connection:
            job = await self._one(
                connection,
                "UPDATE jobs SET lease_expires_at = now() + make_interval(secs => %s)"
                f" WHERE uid = %s AND lease_token = %s RETURNING {_COLUMNS}",
                (lease_seconds, lease.job.uid, lease.token),
            )
        if job is None:
            raise _lost(lease)
        return job

    async def next_sequence(self, connection: Connection, uid: uuid.UUID) -> int:
        """The sequence of an event of the job that is no change of its state; this transaction has locked its row."""
        cursor = await connection.execute(
            "UPDATE jobs SET sequence = sequence + 1 WHERE uid = %s RETURNING sequence, name", (uid,)
        )
        row = await cursor.fetchone()
        assert row is not None
        await self._database.notify(connection, job_topic(row[1]))
        return row[0]

    async def release(self, lease: Lease) -> None:
        """Let the lease run out now, so that another worker goes on with the job at once."""
        async with self._database.transaction() as connection:
            await connection.execute(
                "UPDATE jobs SET lease_expires_at = now() WHERE uid = %s AND lease_token = %s",
                (lease.job.uid, lease.token),
            )
            await self._database.notify(connection, QUEUE_TOPIC)

    async def held(self, connection: Connection, lease: Lease) -> Job:
        """Lock the row for this transaction and prove that the lease still holds. Raises Aborted."""
        job = await self._one(
            connection,
            f"SELECT {_COLUMNS} FROM jobs WHERE uid = %s AND lease_token = %s FOR UPDATE",
            (lease.job.uid, lease.token),
        )
        if job is None:
            raise _lost(lease)
        return job

    async def begin_attempt(self, connection: Connection, lease: Lease, resumed_from_step: int = 0) -> int:
        """The number of the try that starts now, from 1. One that is still open ends as lost."""
        await self.end_attempt(connection, lease, "its worker was lost")
        cursor = await connection.execute(
            "INSERT INTO job_attempts (job_uid, number, lease_owner, resumed_from_step)"
            " SELECT %(uid)s, coalesce(max(number), 0) + 1, %(owner)s, %(step)s FROM job_attempts"
            " WHERE job_uid = %(uid)s RETURNING number",
            {"uid": lease.job.uid, "owner": lease.owner, "step": resumed_from_step},
        )
        row = await cursor.fetchone()
        assert row is not None
        return row[0]

    async def end_attempt(self, connection: Connection, lease: Lease, reason: str) -> None:
        """Close the attempt that is open, if one is. `reason` is empty after success. Raises Aborted."""
        await self.held(connection, lease)
        await connection.execute(
            "UPDATE job_attempts SET end_time = now(), end_reason = %s WHERE job_uid = %s AND end_time IS NULL",
            (storable(reason), lease.job.uid),
        )

    async def report(self, connection: Connection, lease: Lease, progress: Mapping[str, Any]) -> None:
        """Merge `progress` into what the job shows while it runs; does not raise its sequence. Raises Aborted."""
        cursor = await connection.execute(
            "UPDATE jobs SET progress = progress || %s WHERE uid = %s AND lease_token = %s",
            (Jsonb(dict(progress)), lease.job.uid, lease.token),
        )
        if cursor.rowcount == 0:
            raise _lost(lease)
        await self._database.notify(connection, progress_topic(lease.job.name))

    async def delete(self, connection: Connection, job: Job) -> None:
        """With its attempts and the requests that made it; this transaction has locked its row. Its events stay."""
        await connection.execute("DELETE FROM jobs WHERE uid = %s", (job.uid,))
        await connection.execute("DELETE FROM requests WHERE resource = %s", (job.name,))

    async def lock(self, connection: Connection, name: str) -> Job:
        """The job, which nobody moves until this transaction ends. Raises NotFound."""
        job = await self._one(connection, f"SELECT {_COLUMNS} FROM jobs WHERE name = %s FOR UPDATE", (name,))
        if job is None:
            raise NotFound("JOB_NOT_FOUND", f"there is no {name}", name=name)
        return job

    async def _one(self, connection: Connection, query: str, parameters: Any) -> Job | None:
        async with connection.cursor(row_factory=class_row(Job)) as cursor:
            await cursor.execute(query.encode(), parameters)
            return await cursor.fetchone()


def job_topic(name: str) -> str:
    """The notice that a change of this job sends."""
    return f"job:{name}"


def progress_topic(name: str) -> str:
    """The notice that progress of this job sends: far more often than it changes, and of no use to most who wait."""
    return f"progress:{name}"


def _lost(lease: Lease) -> Aborted:
    return Aborted("LEASE_LOST", f"{lease.job.name} is held by another worker now", name=lease.job.name)


def _uid(page: PageRequest) -> uuid.UUID | None:
    """Where the page starts. A token is not signed, so what it holds is checked like any other input."""
    try:
        return uuid.UUID(str(page.after[0])) if page.after else None
    except ValueError:
        raise InvalidArgument.of("page_token", "is not a token that a list returned") from None
