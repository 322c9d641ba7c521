"""Checkpoints: show, list, download."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.mesh import names
from services.mesh.artifacts import Manifest
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.db.postgres import Database
from services.mesh.errors import DataLoss, FailedPrecondition, NotFound
from services.mesh.jobs.store import Jobs
from services.mesh.rpc.pagination import Page, PageRequest
from services.trainer.checkpoints.corruption import Corruption
from services.trainer.entities import Checkpoint, CheckpointState
from services.trainer.store import checkpoints as store


class Checkpoints:
    """Use cases."""

    def __init__(self, database: Database, jobs: Jobs, artifacts: CollectingStore, corruption: Corruption) -> None:
        self._database = database
        self._jobs = jobs
        self._artifacts = artifacts
        self._corruption = corruption

    async def get(self, name: str) -> tuple[Checkpoint, Manifest]:
        """The checkpoint and its files: those of one that is READY, or that could not be confirmed. One whose files are
        gone or cut short is CORRUPT and has none."""
        checkpoint = await self._get(name)
        if not checkpoint.has_files:
            return checkpoint, Manifest(())
        try:
            return checkpoint, await self._artifacts.whole_manifest(checkpoint.manifest_sha256)
        except DataLoss as error:
            await self._corruption.mark(name, checkpoint.manifest_sha256, error)
            return await self._get(name), Manifest(())

    async def list(self, parent: str, page: PageRequest) -> Page[Checkpoint]:
        """Highest step first."""
        names.parse(names.TRAINING_JOB, parent, "parent")
        async with self._database.transaction() as connection:
            await self._jobs.get(connection, parent)
            rows = await store.list_(connection, parent, page)
        return page.page(rows, lambda checkpoint: (checkpoint.step,))

    async def download(
        self, name: str, path: str, offset: int, allow_corrupt: bool = False
    ) -> AsyncIterator[tuple[int, bytes]]:
        """One file from `offset` on, as (offset, chunk), with `allow_corrupt` of one that could not be confirmed, too.

        Raises DataLoss at the end when its bytes have changed; the
        checkpoint is CORRUPT then. From the middle on only the length is looked at: the reader knows the hash."""
        checkpoint, manifest = await self.get(name)
        if checkpoint.state is not CheckpointState.READY and not (allow_corrupt and checkpoint.files_kept):
            why = f" ({checkpoint.state_reason})" if checkpoint.state_reason else ""
            kept = "its files are kept: allow_corrupt (--allow-corrupt) has them downloaded as they are"
            message = f"{name} is {checkpoint.state}{why}; {kept if checkpoint.files_kept else 'it has no files'}"
            raise FailedPrecondition("CHECKPOINT_NOT_READY", message, name=name)
        try:
            async for chunk in self._artifacts.stream_file(manifest.file(path), offset):
                yield chunk
        except DataLoss as error:
            await self._corruption.mark(name, checkpoint.manifest_sha256, error)
            raise

    async def _get(self, name: str) -> Checkpoint:
        names.parse(names.TRAINING_CHECKPOINT, name)
        async with self._database.transaction() as connection:
            checkpoint = await store.get(connection, name)
        if checkpoint is None:
            raise NotFound("CHECKPOINT_NOT_FOUND", f"there is no {name}", name=name)
        return checkpoint
