"""Which event tells of which change; called inside the transaction of the change."""

from __future__ import annotations

from rlhf.event.v1 import checkpoint_changed_pb2, training_job_deleted_pb2, training_job_warned_pb2

from services.mesh.db.postgres import Connection, Database
from services.mesh.events.outbox import EventLog
from services.mesh.jobs import wire as job_wire
from services.mesh.jobs.resource import jobs_with_events, record, warnings_with_events
from services.mesh.jobs.store import Job, Jobs
from services.mesh.jobs.warnings import JobWarning, JobWarnings
from services.trainer import wire
from services.trainer.entities import Checkpoint
from services.trainer.models import service
from services.trainer.models.service import IMPORT
from services.trainer.training.deletion import AnnounceDeletion
from services.trainer.training.service import TRAINING_JOBS


def jobs_of(database: Database, log: EventLog) -> Jobs:
    """The trainer's jobs: a training job's move is an event, an import's end is written into its model."""
    return jobs_with_events(database, log, {TRAINING_JOBS: wire.job_changed}, {IMPORT: service.ended})


def warnings_of(jobs: Jobs, log: EventLog) -> JobWarnings:
    """The warnings of the trainer's jobs."""

    def warned(job: Job, warning: JobWarning) -> training_job_warned_pb2.TrainingJobWarned:
        return training_job_warned_pb2.TrainingJobWarned(training_job=job.name, warning=job_wire.warning(warning))

    return warnings_with_events(jobs, log, warned)


def deletion_of(jobs: Jobs, log: EventLog) -> AnnounceDeletion:
    """The last event of a training job."""

    async def announce(connection: Connection, job: Job) -> None:
        found = wire.training_job(await record(connection, jobs, TRAINING_JOBS, job))
        sequence = await jobs.next_sequence(connection, job.uid)
        await log.add(connection, job.name, sequence, training_job_deleted_pb2.TrainingJobDeleted(training_job=found))

    return announce


class CheckpointAnnouncer:
    """Announces every state of a checkpoint, in the order of its job's events."""

    def __init__(self, jobs: Jobs, log: EventLog) -> None:
        self._jobs = jobs
        self._log = log

    async def __call__(self, connection: Connection, checkpoint: Checkpoint) -> None:
        event = checkpoint_changed_pb2.CheckpointChanged(checkpoint=wire.checkpoint(checkpoint))
        sequence = await self._jobs.next_sequence(connection, checkpoint.job_uid)
        await self._log.add(connection, checkpoint.name, sequence, event)
