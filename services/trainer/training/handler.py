"""Carrying out training jobs: each is a run of verl on Ray."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import msgspec

from services.mesh.db.postgres import Connection, Database
from services.mesh.jobs.store import Jobs, Lease, State
from services.mesh.jobs.warnings import JobWarnings
from services.mesh.jobs.worker import JobResult
from services.mesh.runs.follower import Reading
from services.mesh.runs.handler import Deaths, Launch, RunHandler, RunRules
from services.mesh.runs.runners import Entrypoint, Run
from services.trainer.checkpoints.ingest import CheckpointIngest
from services.trainer.checkpoints.lifecycle import CheckpointLifecycle
from services.trainer.entities import TrainingSpec
from services.trainer.models.weights_cache import cancel_on
from services.trainer.runs import records
from services.trainer.store import checkpoints
from services.trainer.training import launch_plan
from services.trainer.training.preparation import Preparation

RUNNER = "services.trainer.verl.runner"


class TrainingHandler(RunHandler):
    deaths = Deaths(
        said="the training process died",
        remedy="a process that was killed has often run out of memory: lower micro_batch_size",
        ends=frozenset({"RAY_UNREACHABLE", "WORKER_DIED", "NODE_DIED"}),
        failed="TRAINING_FAILED",
    )

    def __init__(
        self,
        rules: RunRules,
        database: Database,
        jobs: Jobs,
        warnings: JobWarnings,
        entrypoint: Entrypoint,
        preparation: Preparation,
        ingest: CheckpointIngest,
        lifecycle: CheckpointLifecycle,
    ) -> None:
        reading = Reading("trainer.runner", {records.Checkpoint: ingest}, records.DECODER)
        super().__init__(rules, database, jobs, warnings, reading, entrypoint)
        self._preparation = preparation
        self._lifecycle = lifecycle

    def folder(self, lease: Lease) -> Path:
        return self._lifecycle.folder(lease)

    def target(self, lease: Lease) -> str:
        return lease.job.spec["target"]

    async def prepare(self, lease: Lease, cancelled: asyncio.Event) -> Launch | None:
        spec = TrainingSpec(**lease.job.spec)
        inputs = await cancel_on(cancelled, self._preparation.materialize(lease, spec))
        if inputs is None:
            return None
        resume = await self._lifecycle.resume_point(lease)
        plan = partial(self._preparation.plan, lease, spec, inputs, resume)
        return Launch(plan, resume.step if resume else 0)

    async def begin(self, connection: Connection, lease: Lease) -> None:
        await checkpoints.drop_verifying(connection, lease.job.uid)

    async def handled(self, lease: Lease) -> None:
        await self._lifecycle.prune(lease)

    async def cleanup(self, lease: Lease, result: JobResult) -> None:
        await self._lifecycle.cleanup(lease, succeeded=result.state is State.SUCCEEDED)

    def input_bytes(self, run: Run) -> int:
        try:
            model = Path(launch_plan.read(run.folder).model_path)
            return sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
        except (OSError, msgspec.DecodeError):
            return 0
