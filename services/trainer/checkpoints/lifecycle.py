"""What is kept of a job's checkpoints, and what goes: the rule of retention, training states, the run's own copies.

Each step is done once more by who comes after a crash in it: a state is written before files go, and files go before
it is forgotten that they have to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from pathlib import Path
from uuid import UUID

from services.mesh.artifacts import references
from services.mesh.artifacts.gc import Collector
from services.mesh.db.postgres import Database, wait
from services.mesh.errors import FailedPrecondition, PlatformError, Unavailable
from services.mesh.jobs.store import Jobs, Lease
from services.trainer.checkpoints.ingest import AnnounceCheckpoint, training_state_sha256
from services.trainer.checkpoints.retention import reason, settings_of, surplus, surplus_unconfirmed
from services.trainer.entities import CheckpointState
from services.trainer.store import checkpoints as store
from services.trainer.store import ended_states, files
from services.trainer.store.files import FILES_TOPIC
from services.trainer.training.launch_plan import ResumePoint

log = logging.getLogger(__name__)

SWEEP_SECONDS = 3600.0


class CheckpointLifecycle:
    """Of the holder of a job's lease."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        collector: Collector,
        announce: AnnounceCheckpoint,
        jobs_folder: Path,
        kept_training_states: int,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._collector = collector
        self._announce = announce
        self._jobs_folder = jobs_folder
        self._kept_training_states = kept_training_states

    def folder(self, lease: Lease) -> Path:
        return self._jobs_folder / str(lease.job.uid)

    async def resume_point(self, lease: Lease) -> ResumePoint | None:
        """The newest training state that still is what was saved; those that are not are marked and stepped over.

        So is one of a step that the run did not live to tell of: its metrics would be of no attempt.
        """
        async with self._database.transaction() as connection:
            candidates = await store.resumable(connection, lease.job.uid)
        told = lease.job.progress.get("step_count", 0)
        for checkpoint in (each for each in candidates if each.step <= told):
            path = Path(checkpoint.training_state_path)
            if await asyncio.to_thread(_hash_or_nothing, path) == checkpoint.training_state_sha256:
                return ResumePoint(checkpoint.step, str(path))
            log.warning("the training state of %s has changed; stepping back", checkpoint.name)
            async with self._database.transaction() as connection:
                await self._jobs.held(connection, lease)
                await store.spoil_training_state(connection, lease.job.uid, checkpoint.step)
        origin = lease.job.spec.get("resume_from", "")
        return await self._origin(origin) if origin else None

    async def _origin(self, name: str) -> ResumePoint:
        """Of a job that goes on from another's."""
        async with self._database.transaction() as connection:
            checkpoint = await store.get(connection, name)
        if checkpoint is not None and checkpoint.training_state_path:
            path = Path(checkpoint.training_state_path)
            if await asyncio.to_thread(_hash_or_nothing, path) == checkpoint.training_state_sha256:
                return ResumePoint(checkpoint.step, str(path))
        remedy = "start from the checkpoint by base_model, with a new optimizer"
        message = f"the training state of {name} is gone, or no longer what was saved\nWhat to do: {remedy}"
        raise FailedPrecondition("TRAINING_STATE_GONE", message, name=name, remedy=remedy)

    async def prune(self, lease: Lease) -> None:
        """Let go what the job's settings no longer keep, now that what replaces it is READY."""
        settings = settings_of(lease.job.spec["params"])
        await self._drop_copies(lease)
        async with self._database.transaction() as connection:
            await self._jobs.held(connection, lease)
            # Locked first: whoever comes to use one of them has done so before we look, or comes after.
            await references.lock(connection, exclusive=True)
            found = await store.of_job(connection, lease.job.uid, locked=True)
            for checkpoint in surplus(found, settings, await references.used(connection, lease.job.name)):
                pruned = await store.leave_ready(connection, checkpoint.name, CheckpointState.PRUNED, reason(settings))
                if pruned is not None:
                    await references.drop(connection, pruned.name)
                    await self._announce(connection, pruned)
            for checkpoint in surplus_unconfirmed(found, settings):
                kept = settings.keep_last + (settings.keep_best or 0)
                why = f"the job keeps the newest {kept} of those that could not be confirmed"
                await store.let_files_go(connection, checkpoint.name, why)
                await references.drop(connection, checkpoint.name)
        await self._collector.collect()
        await self._forget_training_states(lease, settings.keep_training_states)

    async def cleanup(self, lease: Lease, *, succeeded: bool) -> None:
        """Remove an ended job's rows, training states and own copies of weights; of one that has not come to its end
        the newest training state stays.
        """
        await self.prune(lease)
        await self._forget_training_states(lease, 0 if succeeded else min(1, self._kept_training_states))
        async with self._database.transaction() as connection:
            found = await store.of_job(connection, lease.job.uid)
        kept = {one.training_state_path for one in found if one.training_state_path}
        await asyncio.to_thread(_remove_files, self.folder(lease), kept)

    async def run(self) -> None:
        """A worker's routine: `sweep` when something was deleted and now and then, until cancelled."""
        with self._database.notices.subscribe(FILES_TOPIC) as deleted:
            while True:
                try:
                    await self.sweep()
                except Unavailable as error:
                    log.warning("nothing is swept: %s", error)
                except Exception:
                    log.exception("the sweep failed")
                await wait(deleted, SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Files of jobs that ended without their handler, and what was deleted."""
        async with self._database.transaction() as connection:
            kept = await ended_states.kept(connection, self._kept_training_states)
            left = await ended_states.left_over(connection, kept)
        for uid in left:
            folder = self._jobs_folder / str(uid)
            # One that is not here may be on another host.
            if folder.exists():
                await asyncio.to_thread(_remove_files, folder, set(kept.values()))
                async with self._database.transaction() as connection:
                    await ended_states.forget_files(connection, uid, kept)
        await self._remove_deleted()
        await self._collector.collect()

    async def _remove_deleted(self) -> None:
        """Remove what the runs of deleted jobs and of deleted checkpoints left here."""
        folders = {uid: path for path in self._jobs_folder.glob("*") if (uid := _uid(path)) is not None}
        async with self._database.transaction() as connection:
            deleted = await files.deleted(connection, list(folders))
        for uid, path in deleted:
            found = folders[uid] / path
            if found.is_relative_to(folders[uid]):
                await asyncio.to_thread(shutil.rmtree, found, ignore_errors=True)
            # That a whole job is deleted stays: another host may have a folder of its, too.
            if path:
                async with self._database.transaction() as connection:
                    await files.forget(connection, uid, path)

    async def _drop_copies(self, lease: Lease) -> None:
        """Delete the run's own copies of weights that are in the store, or that are of no use."""
        async with self._database.transaction() as connection:
            found = await store.of_job(connection, lease.job.uid)
        for checkpoint in found:
            if checkpoint.weights_path and checkpoint.state is not CheckpointState.VERIFYING:
                await self._delete(lease, checkpoint.weights_path)
                async with self._database.transaction() as connection:
                    await store.forget_weights_path(connection, lease.job.uid, checkpoint.step)

    async def _forget_training_states(self, lease: Lease, keep: int) -> None:
        async with self._database.transaction() as connection:
            await self._jobs.held(connection, lease)
            paths = await store.forget_training_states(connection, lease.job.uid, keep)
        for path in paths:
            await self._delete(lease, path)

    async def _delete(self, lease: Lease, path: str) -> None:
        """A folder of the job's own; nothing that a spool merely names."""
        if Path(path).is_relative_to(self.folder(lease)):
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


def _uid(path: Path) -> UUID | None:
    """The job whose folder it is; None for anything else."""
    try:
        return UUID(path.name)
    except ValueError:
        return None


def _remove_files(folder: Path, kept: set[str]) -> None:
    """Remove of an ended job its rows, copies of weights, and training states but those `kept`; plans and logs stay."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    for path in folder.glob("attempts/*/checkpoints/*/*"):
        if str(path) not in kept:
            shutil.rmtree(path, ignore_errors=True)
    # Those that are empty now.
    for path in (*folder.glob("attempts/*/checkpoints/*"), *folder.glob("attempts/*/checkpoints")):
        with contextlib.suppress(OSError):
            path.rmdir()


def _hash_or_nothing(path: Path) -> str:
    """Empty where there is nothing to hash."""
    try:
        return training_state_sha256(path)
    except (PlatformError, OSError):
        return ""
