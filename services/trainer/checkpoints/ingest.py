"""Taking in what a run saved: weights go to the artifact store, the row tells its state, an event announces it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from services.mesh import names
from services.mesh.artifacts import Manifest, references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.db.postgres import Connection
from services.mesh.errors import Aborted, DataLoss
from services.mesh.jobs.model import storable
from services.mesh.jobs.store import Job
from services.models import lineage
from services.trainer.entities import Checkpoint, CheckpointState, TrainingSpec, TrainingStateState
from services.trainer.runs import records
from services.trainer.store import checkpoints as store
from services.trainer.training.input_references import hold_checkpoint

log = logging.getLogger(__name__)

MAX_REASON_CHARACTERS = 2000
# Announces a checkpoint's state, in the transaction that stores it; the job's row is locked.
AnnounceCheckpoint = Callable[[Connection, Checkpoint], Awaitable[None]]


class CheckpointIngest:
    def __init__(self, artifacts: CollectingStore, announce: AnnounceCheckpoint) -> None:
        self._artifacts = artifacts
        self._announce = announce

    async def take(self, job: Job, attempt: int, record: records.Checkpoint, at: datetime) -> Checkpoint:
        """The row of a checkpoint record. Weights are stored first: READY ones, of which those that changed since they
        were verified are CORRUPT, and those that the check could not confirm, for the check may be what is wrong."""
        manifest: Manifest | None = None
        state, why, state_sha256, stored = CheckpointState(record.state.upper()), "", "", record.manifest_sha256
        if state is CheckpointState.READY:
            manifest = await self._artifacts.put_folder(Path(record.path))
            if manifest.sha256 != record.manifest_sha256:
                log.error("checkpoint %s of %s changed after it was verified", record.step, job.name)
                state, why = CheckpointState.CORRUPT, "its files changed after they were verified"
                stored = manifest.sha256
            state_sha256 = await asyncio.to_thread(training_state_sha256, Path(record.training_state_path))
        elif state is CheckpointState.CORRUPT:
            why = f"it could not be confirmed: {storable(record.reason)[:MAX_REASON_CHARACTERS] or 'nobody says why'}"
            manifest = await self._keep(Path(record.path))
            stored = manifest.sha256 if manifest else ""
        corrupt = state is CheckpointState.CORRUPT
        return Checkpoint(
            job_uid=job.uid,
            step=record.step,
            name=names.child(job.name, "checkpoints", f"step-{record.step}"),
            attempt=attempt,
            kind=record.kind,
            state=state,
            base_model=job.spec["base_model"] if record.kind == "adapter" else "",
            manifest_sha256=stored,
            size_bytes=manifest.size_bytes if manifest else record.size_bytes,
            metrics=record.metrics,
            parents=[job.spec["base_model"], job.spec["dataset_version"]],
            training_state_path="" if corrupt else record.training_state_path,
            training_state_sha256=state_sha256,
            create_time=at,
            state_reason=why,
            provenance=_provenance(job, attempt, record),
            training_state=TrainingStateState.PRUNED if corrupt else TrainingStateState.KEPT,
            weights_path=record.path,
            files_kept=corrupt and manifest is not None,
        )

    async def _keep(self, folder: Path) -> Manifest | None:
        """Store what was saved as it is; None where there is nothing."""
        return await self._artifacts.put_folder(folder) if await asyncio.to_thread(_has_files, folder) else None

    async def store(self, connection: Connection, job: Job, checkpoint: Checkpoint) -> None:
        """Write the row, its references and its event. Raises Aborted where a blob has been collected since it was
        looked at: while nothing needed it. Taking the checkpoint in once more puts it back."""
        await references.lock(connection)
        manifest = await self._manifest(checkpoint)
        before = await store.previous(connection, checkpoint.job_uid, checkpoint.step)
        known = {**checkpoint.provenance, "previous_checkpoint": before}
        checkpoint = replace(checkpoint, provenance=known)
        if await store.put(connection, checkpoint):
            if manifest is not None:
                await hold_checkpoint(connection, checkpoint, manifest, TrainingSpec(**job.spec))
            await self._announce(connection, checkpoint)

    async def _manifest(self, checkpoint: Checkpoint) -> Manifest | None:
        """Of one that has files; all of its blobs are there."""
        if not checkpoint.has_files:
            return None
        try:
            return await self._artifacts.whole_manifest(checkpoint.manifest_sha256)
        except DataLoss as error:
            raise Aborted("BLOBS_COLLECTED", f"{error.message}; it is stored again", name=checkpoint.name) from None


def _provenance(job: Job, attempt: int, record: records.Checkpoint) -> dict[str, Any]:
    """Fields of rlhf.type.v1.Provenance, all that is known without a look at other checkpoints."""
    spec = TrainingSpec(**job.spec)
    return {
        "job": job.name,
        "attempt": attempt,
        "algorithm": spec.algorithm,
        "base_model": spec.base_model,
        "base_manifest_sha256": spec.base_manifest_sha256,
        "dataset_version": spec.dataset_version,
        "dataset_sha256": spec.dataset_sha256,
        "validation_dataset_version": spec.validation_dataset_version,
        "validation_dataset_sha256": spec.validation_dataset_sha256,
        "reward_models": spec.reward_models,
        "params_sha256": lineage.sha256(spec.params),
        "seed": int(spec.params.get("seed", 0)),
        "software": dict(record.software),
    }


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.iterdir())


def training_state_sha256(path: Path) -> str:
    """Hash of the manifest of verl's own state."""
    return Manifest.of_folder(path).sha256
