"""Warnings of a job: records of their own, counted where they repeat, at most so many for each job.

What is found before the job exists belongs into its spec, as JobWarning with attempt 0; what a run finds is added here,
in the transaction of what it was found with. The first of its kind in an attempt is announced as an event.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from services.mesh.db.postgres import Connection
from services.mesh.jobs.model import Job, storable

# Distinct ones that a job may hold: all of them travel with the job, in events too, which have a limit of size.
MAX_DISTINCT = 50
MAX_MESSAGE_CHARACTERS = 1000
MAX_REMEDY_CHARACTERS = 500
MAX_KEY_CHARACTERS = 200
# Counts what found no room.
LEFT_OUT = "WARNINGS_LEFT_OUT"
_LEFT_OUT_REMEDY = "look at the warnings that are shown first; what is left out has often the same cause"

_COLUMNS = "attempt, reason, key, severity, message, remedy, first_step, last_step, count, first_time, last_time"


class Severity(StrEnum):
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True, kw_only=True)
class JobWarning:
    """One row. `reason` is a stable UPPER_SNAKE_CASE word, `remedy` empty where none is known, `attempt` 0 for what was
    found at Create. `key` tells apart what shares a reason; it is shown to nobody.
    """

    reason: str
    message: str
    remedy: str = ""
    severity: Severity = Severity.WARNING
    key: str = ""
    first_step: int = 0
    last_step: int = 0
    count: int = 1
    attempt: int = 0
    # None for what was found at Create: the job's create_time.
    first_time: datetime | None = None
    last_time: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "severity", Severity(self.severity))
        object.__setattr__(self, "message", storable(self.message)[:MAX_MESSAGE_CHARACTERS])
        object.__setattr__(self, "remedy", storable(self.remedy)[:MAX_REMEDY_CHARACTERS])
        object.__setattr__(self, "key", storable(self.key)[:MAX_KEY_CHARACTERS])

    def then(self, later: JobWarning) -> JobWarning:
        """This and `later`, which is of the same kind, as one; a repetition never makes it less severe."""
        return replace(
            later,
            severity=max(self.severity, later.severity, key=list(Severity).index),
            first_step=min(self.first_step, later.first_step),
            last_step=max(self.last_step, later.last_step),
            count=self.count + later.count,
            first_time=self.first_time,
        )


# Writes the event of a warning that is new; the job's row is locked.
AnnounceWarning = Callable[[Connection, Job, JobWarning], Awaitable[None]]


class JobWarnings:
    """The warnings of one service's jobs."""

    def __init__(self, announce: AnnounceWarning) -> None:
        self._announce = announce

    async def add(self, connection: Connection, job: Job, found: Iterable[JobWarning]) -> None:
        """Store what has been found, in order. The transaction has locked the job's row."""
        merged: dict[tuple[int, str, str], JobWarning] = {}
        for warning in found:
            kind = (warning.attempt, warning.reason, warning.key)
            merged[kind] = merged[kind].then(warning) if kind in merged else warning
        if not merged:
            return
        known = await _kinds(connection, job.uid)
        for kind, warning in merged.items():
            if kind not in known and len(known) >= MAX_DISTINCT - 1:
                warning, kind = _left_out(warning)
            if not await _count(connection, job.uid, warning):
                await _insert(connection, job.uid, warning)
                known.add(kind)
                await self._announce(connection, job, warning)


async def of(connection: Connection, uids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[JobWarning]]:
    """In the order they were found, by job."""
    wanted = list(uids)
    found: dict[uuid.UUID, list[JobWarning]] = {uid: [] for uid in wanted}
    cursor = await connection.execute(
        f"SELECT job_uid, {_COLUMNS} FROM job_warnings WHERE job_uid = ANY(%s) ORDER BY job_uid, ordinal".encode(),
        (wanted,),
    )
    names = _COLUMNS.split(", ")
    async for uid, *values in cursor:
        found[uid].append(JobWarning(**dict(zip(names, values, strict=True))))
    return found


async def _kinds(connection: Connection, uid: uuid.UUID) -> set[tuple[Any, ...]]:
    cursor = await connection.execute("SELECT attempt, reason, key FROM job_warnings WHERE job_uid = %s", (uid,))
    return set(await cursor.fetchall())


def _left_out(warning: JobWarning) -> tuple[JobWarning, tuple[int, str, str]]:
    """The record that counts warnings for which there is no room."""
    last = f"{warning.reason}: {warning.message}"
    message = f"counts the warnings beyond the first {MAX_DISTINCT - 1} that differ; the last was {last}"
    left = replace(warning, reason=LEFT_OUT, message=message, remedy=_LEFT_OUT_REMEDY, key="", attempt=0)
    return left, (left.attempt, left.reason, left.key)


async def _count(connection: Connection, uid: uuid.UUID, warning: JobWarning) -> bool:
    """Count a repetition, as `JobWarning.then`; False where there is nothing to repeat."""
    severities = list(Severity)
    not_lower = [str(each) for each in severities[severities.index(warning.severity) :]]
    cursor = await connection.execute(
        "UPDATE job_warnings SET severity = CASE WHEN severity = ANY(%s) THEN severity ELSE %s END,"
        " message = %s, remedy = %s, first_step = least(first_step, %s),"
        " last_step = greatest(last_step, %s), count = count + %s, last_time = %s"
        " WHERE job_uid = %s AND attempt = %s AND reason = %s AND key = %s",
        (
            *(not_lower, str(warning.severity), warning.message, warning.remedy),
            *(warning.first_step, warning.last_step),
            *(warning.count, warning.last_time, uid, warning.attempt, warning.reason, warning.key),
        ),
    )
    return cursor.rowcount > 0


async def _insert(connection: Connection, uid: uuid.UUID, warning: JobWarning) -> None:
    values = [getattr(warning, name) for name in _COLUMNS.split(", ")]
    places = ", ".join(["%s"] * len(values))
    query = f"INSERT INTO job_warnings (job_uid, {_COLUMNS}) VALUES (%s, {places})"
    await connection.execute(query.encode(), (uid, *values))
