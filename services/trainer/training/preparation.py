"""Preparation of a run: its rows and weights on this host, and the launch plan that names them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from services.mesh.db.postgres import Database
from services.mesh.jobs.store import Jobs, Lease
from services.mesh.telemetry import tracing
from services.mesh.validation import params
from services.trainer.algorithms import algorithms
from services.trainer.checkpoints.lifecycle import CheckpointLifecycle
from services.trainer.dataset_client import DatasetClient
from services.trainer.entities import Layer, TrainingSpec
from services.trainer.models.weights_cache import WeightsCache
from services.trainer.settings import Settings
from services.trainer.store.models import known_as
from services.trainer.training.launch_plan import PlanInputs, ResumePoint, encode

# What the job's judges have cost, of all its attempts.
LEDGER_FILE = "reward_cost.json"


@dataclass(frozen=True)
class Inputs:
    """Local paths of what a run reads; `validation` is None without a validation version."""

    model: Path
    train: Path
    validation: Path | None
    # Where each reward model lies, by its reference.
    reward_models: dict[str, str]
    base_name: str


class Preparation:
    def __init__(
        self,
        settings: Settings,
        database: Database,
        jobs: Jobs,
        weights: WeightsCache,
        datasets: DatasetClient,
        keeper: CheckpointLifecycle,
    ) -> None:
        self._settings = settings
        self._database = database
        self._jobs = jobs
        self._weights = weights
        self._datasets = datasets
        self._keeper = keeper

    async def materialize(self, lease: Lease, spec: TrainingSpec) -> Inputs:
        """Rows and weights on this host, verified."""
        async with self._database.transaction() as connection:
            progress = {"phase": "merging" if spec.base_under else "preparing"}
            await self._jobs.report(connection, lease, progress)
        data = self._keeper.folder(lease) / "data"
        model = await self._weights.materialize(spec.base_layers)
        train = await self._rows(spec.dataset_version, data / "train.jsonl")
        validation = None
        if spec.validation_dataset_version:
            validation = await self._rows(spec.validation_dataset_version, data / "validation.jsonl")
        judges = {name: Layer(name, sha256) for name, sha256 in spec.reward_models.items()}
        models = {name: str(await self._weights.materialize([layer])) for name, layer in judges.items()}
        async with self._database.transaction() as connection:
            base_name = await known_as(connection, spec.base_model)
        return Inputs(model, train, validation, models, base_name)

    async def _rows(self, version: str, target: Path) -> Path:
        facts = await self._datasets.version(version)
        await self._datasets.download(version, facts.size_bytes, target)
        return target

    def plan(
        self, lease: Lease, spec: TrainingSpec, inputs: Inputs, resume: ResumePoint | None, attempt: int, folder: Path
    ) -> bytes:
        """The document of an attempt, `plan.json`."""
        algorithm = algorithms.get(spec.algorithm)
        plan_inputs = PlanInputs(
            job=lease.job.name,
            job_uid=str(lease.job.uid),
            attempt=attempt,
            device="cuda" if self._settings.device == "cuda" else "cpu",
            slots=spec.slots,
            ray_address=self._settings.ray_address,
            # Of this attempt alone: what an attempt that died has left behind cannot be met.
            ray_namespace=f"job-{lease.job.uid}-{attempt}",
            model_path=str(inputs.model),
            train_path=str(inputs.train),
            train_rows=spec.train_rows,
            validation_path=str(inputs.validation) if inputs.validation else None,
            validation_rows=spec.validation_rows,
            resume_from=resume,
            work_dir=str(folder),
            base_name=inputs.base_name,
            traceparent=tracing.traceparent(),
            reward_site=replace(
                self._settings.reward_site,
                models=inputs.reward_models,
                ledger=str(self._keeper.folder(lease) / LEDGER_FILE),
            ),
        )
        return encode(algorithm.plan(params.parse(algorithm.Params, spec.params), plan_inputs))
