"""Which event tells of which change; called inside the transaction of the change."""

from __future__ import annotations

from rlhf.event.v1 import checkpoint_created_pb2

from services.mesh.events import EventLog
from services.mesh.jobs import Announce, Job, Jobs, State
from services.mesh.postgres import Connection, Database
from services.trainer import models, wire
from services.trainer.entities import Checkpoint
from services.trainer.training_jobs import TRAINING


def jobs_of(database: Database, log: EventLog) -> Jobs:
    """The trainer's jobs: a training job's move is an event, an import's end is written into its model."""

    async def announce(connection: Connection, job: Job, before: State | None) -> None:
        if job.kind == TRAINING:
            attempts = (await jobs.attempts(connection, [job.uid]))[job.uid]
            await log.add(connection, job.name, job.sequence, wire.job_changed(job, attempts, before))
        else:
            await models.ended(connection, job)

    announce_typed: Announce = announce
    jobs = Jobs(database, announce_typed)
    return jobs


class CheckpointAnnouncer:
    """Announces READY checkpoints. A step that a later attempt makes again is announced with that attempt's number."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def __call__(self, connection: Connection, checkpoint: Checkpoint) -> None:
        event = checkpoint_created_pb2.CheckpointCreated(checkpoint=wire.checkpoint(checkpoint))
        await self._log.add(connection, checkpoint.name, checkpoint.attempt, event)
