"""Dataclass → proto of what all jobs have in common, pure.

Messages of jobs (`TrainingJob`) give the fields of one thing the same name and type; `fill_job` sets them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from google.rpc import error_details_pb2
from rlhf.type.v1 import job_attempt_pb2, job_error_pb2, job_state_pb2, job_warning_pb2, queue_position_pb2

from services.mesh.errors import InvalidArgument
from services.mesh.events.outbox import StoredEvent
from services.mesh.jobs.model import Attempt, State
from services.mesh.jobs.queue import QueuePosition
from services.mesh.jobs.resource import JobRecord
from services.mesh.jobs.warnings import JobWarning
from services.mesh.rpc.wellknown import status, timestamp

Response = TypeVar("Response")

_TIMES = ("create_time", "start_time", "end_time")


def fill_job(message: Any, record: JobRecord[Any]) -> None:
    """Set name, priority, state, error, attempts, phase, steps, sequence, times, warnings and queue of a job's message.

    Warnings that the message holds already are those of the check (attempt 0), found when the job was created.
    """
    job = record.job
    message.name = job.name
    message.priority = job.priority
    message.state = job_state(job.state)
    if job.error:
        message.error.CopyFrom(status(job.error))
    message.attempts.extend(map(attempt, record.attempts))
    message.phase = job.progress.get("phase", "") if job.state in (State.RUNNING, State.CANCELLING) else ""
    message.step_count = job.progress.get("step_count", 0)
    message.total_step_count = job.progress.get("total_step_count", 0)
    message.sequence = job.sequence
    for found_at_create in message.warnings:
        found_at_create.first_time.FromDatetime(job.create_time)
        found_at_create.last_time.FromDatetime(job.create_time)
    message.warnings.extend(map(warning, record.warnings))
    if record.queue is not None:
        message.queued_behind.CopyFrom(queue_position(record.queue))
    for field in _TIMES:
        if moment := getattr(job, field):
            getattr(message, field).FromDatetime(moment)


def attempt(row: Attempt) -> job_attempt_pb2.JobAttempt:
    return job_attempt_pb2.JobAttempt(
        number=row.number,
        start_time=timestamp(row.start_time),
        end_time=timestamp(row.end_time),
        end_reason=row.end_reason,
        resumed_from_step=row.resumed_from_step,
    )


def warning(row: JobWarning) -> job_warning_pb2.JobWarning:
    return job_warning_pb2.JobWarning(
        reason=row.reason,
        severity=job_warning_pb2.JobWarning.Severity.Value(f"SEVERITY_{row.severity}"),
        message=row.message,
        remedy=row.remedy,
        first_step=row.first_step,
        last_step=row.last_step,
        count=row.count,
        attempt=row.attempt,
        first_time=timestamp(row.first_time),
        last_time=timestamp(row.last_time),
    )


def queue_position(position: QueuePosition) -> queue_position_pb2.QueuePosition:
    return queue_position_pb2.QueuePosition(
        running=position.running,
        ahead=position.ahead,
        ahead_count=position.ahead_count,
        retry_time=timestamp(position.retry_time),
    )


def job_error(job: Any, at: datetime) -> job_error_pb2.JobError | None:
    """Why the job failed, or why its last attempt did when that is what sent it back to the queue.

    `job` is the message that an event of the time `at` holds.
    """
    last = job.attempts[-1] if job.attempts else job_attempt_pb2.JobAttempt()
    if job.state == job_state_pb2.JOB_STATE_FAILED:
        info = error_details_pb2.ErrorInfo()
        remedy = next((info.metadata.get("remedy", "") for detail in job.error.details if detail.Unpack(info)), "")
        return job_error_pb2.JobError(status=job.error, remedy=remedy, attempt=last.number)
    # Both are the time of the one transaction that wrote them; an earlier attempt has another.
    ended_now = last.end_reason and last.end_time == timestamp(at)
    if job.state != job_state_pb2.JOB_STATE_QUEUED or not ended_now:
        return None
    why = status({"code": "ABORTED", "reason": "ATTEMPT_ENDED", "message": last.end_reason})
    return job_error_pb2.JobError(status=why, attempt=last.number, retried=True)


def job_change(response: Callable[..., Response], field: str, job: Any, event: StoredEvent) -> list[Response]:
    """What StreamJobEvents sends for a change of a job: of a failure, why it failed before the state it led to.

    `job` is the message that the event holds, `field` that of `response` for it.
    """
    sent = [response(**{field: job}, last_sequence=event.sequence)]
    if error := job_error(job, event.create_time):
        # Who resumes between the two reads the error again rather than never its consequence.
        sent.insert(0, response(job_error=error, last_sequence=event.sequence - 1))
    return sent


def job_state(state: State) -> job_state_pb2.JobState.ValueType:
    return job_state_pb2.JobState.Value(f"JOB_STATE_{state}")


def states(values: Any) -> list[State]:
    """States that a filter names. Raises InvalidArgument for one that no job has: left out it would find every job."""
    named = {number: name.removeprefix("JOB_STATE_") for name, number in job_state_pb2.JobState.items()}
    found = [named.get(value, "") for value in values]
    if unknown := sorted({value for value, name in zip(values, found, strict=True) if name not in State.__members__}):
        states = ", ".join(job_state_pb2.JobState.Name(job_state(state)) for state in State)
        raise InvalidArgument.of("states", f"must be of {states} (got the number {unknown[0]})")
    return [State(name) for name in found]
