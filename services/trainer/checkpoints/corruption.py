"""What is found to be no longer what was stored: marked, taken out of the store, and told with what to use instead."""

from __future__ import annotations

import logging

from services.mesh import names
from services.mesh.artifacts import references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.db.postgres import Database
from services.mesh.errors import DataLoss, FailedPrecondition, NotFound
from services.trainer.checkpoints.ingest import AnnounceCheckpoint
from services.trainer.entities import CheckpointState
from services.trainer.store import checkpoints as store

log = logging.getLogger(__name__)


class Corruption:
    def __init__(self, database: Database, artifacts: CollectingStore, announce: AnnounceCheckpoint) -> None:
        self._database = database
        self._artifacts = artifacts
        self._announce = announce

    async def mark(self, name: str, manifest_sha256: str, error: NotFound | DataLoss) -> None:
        """A READY checkpoint is CORRUPT from now on; one that could not be confirmed loses its files. Its spoilt blobs
        go, so that the same bytes can be stored again; others that named them miss them now, which is found in the same
        way."""
        wrong = await self._artifacts.discard_corrupt(manifest_sha256)
        what = ", ".join(wrong[:3]) or "its manifest"
        reason = f"{what}: {error.message}"
        async with self._database.transaction() as connection:
            marked = await store.leave_ready(connection, name, CheckpointState.CORRUPT, reason)
            if marked is not None:
                # What of it is sound goes with the next collection, unless something else names it.
                await references.drop(connection, name)
                await self._announce(connection, marked)
            else:
                await store.let_files_go(connection, name, reason)
                await references.drop(connection, name)
        log.error("%s is corrupt: %s", name, reason)

    async def of_base(self, base_model: str, manifest_sha256: str, error: NotFound | DataLoss) -> FailedPrecondition:
        """What a job is told whose base model cannot be brought; a checkpoint is marked, a model is stored no more."""
        if names.match(names.TRAINING_CHECKPOINT, base_model) is None:
            await self._artifacts.discard_corrupt(manifest_sha256)
            remedy = "import the model again under another name"
        else:
            await self.mark(base_model, manifest_sha256, error)
            before = await self._newest_ready(base_model)
            remedy = f"start from {before}, the newest of its job that is READY" if before else "train it again"
        message = f"{base_model} cannot be used: {error.message}\nWhat to do: {remedy}"
        return FailedPrecondition("BASE_MODEL_CORRUPT", message, name=base_model, remedy=remedy)

    async def _newest_ready(self, name: str) -> str:
        async with self._database.transaction() as connection:
            checkpoint = await store.get(connection, name)
            found = await store.of_job(connection, checkpoint.job_uid) if checkpoint else []
        return next((one.name for one in found if one.state is CheckpointState.READY), "")
