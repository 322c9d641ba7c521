"""Deleting what jobs made: one checkpoint, or a whole job that has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.mesh import names
from services.mesh.artifacts import references
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import FailedPrecondition, NotFound
from services.mesh.jobs.store import TERMINAL, Job, Jobs, job_topic
from services.mesh.streams import store as series
from services.trainer.checkpoints.ingest import AnnounceCheckpoint
from services.trainer.entities import Checkpoint, CheckpointState
from services.trainer.store import checkpoints as store
from services.trainer.store import files
from services.trainer.store.files import FILES_TOPIC
from services.trainer.training.input_references import check_unused
from services.trainer.training.service import TRAINING

DELETED = "deleted"

# Announces that a job is deleted, in the transaction that deletes it; the job's row is locked.
AnnounceDeletion = Callable[[Connection, Job], Awaitable[None]]


class Deletion:
    """Use cases."""

    def __init__(
        self, database: Database, jobs: Jobs, announce: AnnounceCheckpoint, announce_job: AnnounceDeletion
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._announce = announce
        self._announce_job = announce_job

    async def delete_job(self, name: str, *, force: bool) -> None:
        """With its checkpoints and all that was kept of its runs; a worker removes what they left on its disk. Raises
        FailedPrecondition before it has ended, and unless forced while something uses one of its checkpoints.

        Its series go first, in transactions of their own: there may be millions of rows, and everybody who adds a
        reference waits for the last transaction. Where something comes to use the job meanwhile, they are gone.
        """
        names.parse(names.TRAINING_JOB, name)
        async with self._database.transaction() as connection:
            job = await self._ended(connection, name)
            await _check_unused(connection, name, "JOB_IN_USE", force)
            last = await series.last(connection, job.uid)
        for after in range(0, last, series.DELETED_AT_ONCE):
            async with self._database.transaction() as connection:
                await series.delete(connection, job.uid, after)
        async with self._database.transaction() as connection:
            job = await self._ended(connection, name)
            await references.lock(connection, exclusive=True)
            await _check_unused(connection, name, "JOB_IN_USE", force)
            await self._announce_job(connection, job)
            await references.drop_below(connection, name)
            await self._jobs.delete(connection, job)
            await files.delete_all(connection, job.uid)
            await self._database.notify(connection, FILES_TOPIC)
            await self._database.notify(connection, job_topic(name))

    async def delete_checkpoint(self, name: str, *, force: bool) -> Checkpoint:
        """It is PRUNED from then on. Its training state stays until the job has ended, which may have to go on from it.

        Raises FailedPrecondition while it is VERIFYING, and unless forced while something uses it.
        """
        names.parse(names.TRAINING_CHECKPOINT, name)
        async with self._database.transaction() as connection:
            job = await self._locked(connection, name.rpartition("/checkpoints/")[0], name)
            await references.lock(connection, exclusive=True)
            checkpoint = await store.lock(connection, name)
            if checkpoint is None:
                raise _no_checkpoint(name)
            if checkpoint.state is CheckpointState.VERIFYING:
                message = f"{name} is being verified; wait until it is READY or CORRUPT"
                raise FailedPrecondition("CHECKPOINT_VERIFYING", message, name=name)
            await _check_unused(connection, name, "CHECKPOINT_IN_USE", force)
            await references.drop(connection, name)
            deleted = await store.prune(connection, checkpoint, DELETED, with_files=job.state in TERMINAL)
            if deleted != checkpoint:
                await self._announce(connection, deleted)
            await self._database.notify(connection, FILES_TOPIC)
            return deleted

    async def _ended(self, connection: Connection, name: str) -> Job:
        """Its row is locked."""
        job = await self._locked(connection, name)
        if job.state not in TERMINAL:
            message = f"{name} is {job.state}; cancel it, and delete it when it has ended"
            raise FailedPrecondition("JOB_NOT_ENDED", message, name=name, state=job.state)
        return job

    async def _locked(self, connection: Connection, name: str, checkpoint: str = "") -> Job:
        try:
            job = await self._jobs.lock(connection, name)
        except NotFound:
            if checkpoint:
                raise _no_checkpoint(checkpoint) from None
            raise
        if job.kind != TRAINING:
            raise NotFound("JOB_NOT_FOUND", f"there is no {name}", name=name)
        return job


async def _check_unused(connection: Connection, name: str, reason: str, force: bool) -> None:
    """Raises FailedPrecondition. Forced or not, a training state that a job goes on from stays until that has ended: it
    is on the worker's disk, where no reference keeps it."""
    if resumed := await references.users(connection, name, of_name=True):
        message = f"{', '.join(resumed)} went on from a training state of {name}; delete it when that has ended"
        raise FailedPrecondition(reason, message, name=name, users=", ".join(resumed))
    if not force:
        check_unused(name, reason, await references.users(connection, name))


def _no_checkpoint(name: str) -> NotFound:
    return NotFound("CHECKPOINT_NOT_FOUND", f"there is no {name}", name=name)
