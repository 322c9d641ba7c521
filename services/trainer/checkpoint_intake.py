"""Taking in what a run saved: weights go to the artifact store, the row tells its state, an event announces it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

from services.mesh import names
from services.mesh.artifacts import ArtifactStore, Manifest
from services.mesh.jobs import Job
from services.mesh.postgres import Connection
from services.trainer import spool
from services.trainer.entities import Checkpoint, CheckpointState
from services.trainer.store import checkpoints as store

log = logging.getLogger(__name__)

# Announces a checkpoint's state, in the transaction that stores it; the job's row is locked.
AnnounceCheckpoint = Callable[[Connection, Checkpoint], Awaitable[None]]


class CheckpointIntake:
    def __init__(self, artifacts: ArtifactStore, announce: AnnounceCheckpoint) -> None:
        self._artifacts = artifacts
        self._announce = announce

    async def take(self, job: Job, attempt: int, record: spool.Checkpoint, at: datetime) -> Checkpoint:
        """The row of a checkpoint record. READY weights are stored first; ones that changed since they were verified
        are CORRUPT."""
        state = CheckpointState(record.state.upper())
        state_sha256 = ""
        if state is CheckpointState.READY:
            manifest = await self._artifacts.put_folder(Path(record.path))
            if manifest.sha256 != record.manifest_sha256:
                log.error("checkpoint %s of %s changed after it was verified", record.step, job.name)
                state = CheckpointState.CORRUPT
            state_sha256 = await asyncio.to_thread(training_state_sha256, Path(record.training_state_path))
        parents = [job.spec["base_model"], job.spec["dataset_version"]]
        return Checkpoint(
            job_uid=job.uid,
            step=record.step,
            name=names.child(job.name, "checkpoints", f"step-{record.step}"),
            attempt=attempt,
            kind=record.kind,
            state=state,
            base_model=job.spec["base_model"] if record.kind == "adapter" else "",
            manifest_sha256=record.manifest_sha256,
            size_bytes=record.size_bytes,
            metrics=record.metrics,
            parents=parents,
            training_state_path=record.training_state_path if state is not CheckpointState.CORRUPT else "",
            training_state_sha256=state_sha256,
            create_time=at,
        )

    async def store(self, connection: Connection, checkpoint: Checkpoint) -> None:
        await store.put(connection, checkpoint)
        await self._announce(connection, checkpoint)


def training_state_sha256(path: Path) -> str:
    """Hash of the manifest of verl's own state."""
    return Manifest.of_folder(path).sha256
