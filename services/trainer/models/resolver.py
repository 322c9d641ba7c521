"""Looks up what a job names: versions of datasets, models and checkpoints, with the weights that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from services.mesh import names
from services.mesh.artifacts import references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.db.postgres import Database
from services.mesh.errors import DataLoss, InvalidArgument, NotFound, Violation
from services.mesh.jobs.store import TERMINAL, Jobs
from services.models.kinds import is_reward_model
from services.trainer.checkpoints.corruption import Corruption
from services.trainer.dataset_client import DatasetClient
from services.trainer.entities import (
    BaseModel,
    Checkpoint,
    CheckpointState,
    DatasetVersion,
    Layer,
    ModelState,
    TrainingSpec,
)
from services.trainer.store import checkpoints, models

# What is wrong with weights, by the kind that they are.
_WRONG_KIND = {
    "reward": "a reward model, which scores conversations and writes none; a job starts from a language model",
    "full": "a language model, which gives no scores; train a reward model from it with reward_model",
    "adapter": "an adapter of a language model; name a checkpoint of reward_model",
}


class Resolver:
    """Look-ups of each kind of reference. Raise InvalidArgument, or NotFound, with a text for the caller; weights that
    turn out to be damaged are marked as such."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        datasets: DatasetClient,
        artifacts: CollectingStore,
        corruption: Corruption,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._datasets = datasets
        self._artifacts = artifacts
        self._corruption = corruption

    async def dataset_version(self, name: str) -> DatasetVersion:
        names.parse(names.DATASET_VERSION, name, "dataset_version")
        return await self._datasets.version(name)

    async def base_model(self, reference: str) -> BaseModel:
        """The weights behind a model reference. Raises InvalidArgument when they cannot be trained from."""
        return await self._weights(reference, "full", "adapter")

    async def reward_model(self, reference: str) -> BaseModel:
        """The same of a model that scores. Raises InvalidArgument when it does not."""
        return await self._weights(reference, "reward")

    async def resolve(self, parent: str, model: str) -> BaseModel:
        """The weights of a model or checkpoint of any kind. Raises NotFound, InvalidArgument when they can't be had."""
        names.parse(names.PROJECT, parent, "parent")
        try:
            return await self._weights(model, "full", "adapter", "reward")
        except InvalidArgument as error:
            raise InvalidArgument([Violation("model", each.description) for each in error.violations]) from error

    async def checkpoint(self, reference: str) -> BaseModel:
        """The weights of a checkpoint of any kind. Raises InvalidArgument when they cannot be had."""
        if not names.match(names.TRAINING_CHECKPOINT, reference):
            message = f"must be of the form {names.TRAINING_CHECKPOINT} (got {reference[:120]!r})"
            raise InvalidArgument.of("base_model", message)
        return await self._weights(reference, "full", "adapter", "reward")

    async def training_state(self, name: str) -> tuple[Checkpoint, TrainingSpec]:
        """A checkpoint that training can go on from, and what its job was. Raises InvalidArgument, NotFound."""
        names.parse(names.TRAINING_CHECKPOINT, name, "resume_from")
        async with self._database.transaction() as connection:
            checkpoint = await checkpoints.get(connection, name)
            if checkpoint is None:
                raise NotFound("CHECKPOINT_NOT_FOUND", f"there is no {name}", name=name)
            job = await self._jobs.get(connection, name.rpartition("/checkpoints/")[0])
        if job.state not in TERMINAL:
            raise InvalidArgument.of(
                "resume_from", f"{job.name} is {job.state}; cancel it first, or let it go on itself"
            )
        if (
            checkpoint.state not in (CheckpointState.READY, CheckpointState.PRUNED)
            or not checkpoint.training_state_path
        ):
            message = f"{name} has no training state to go on from; start from it by base_model, with a new optimizer"
            raise InvalidArgument.of("resume_from", message)
        return checkpoint, TrainingSpec(**job.spec)

    async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
        """Those of `paths` that the model has, each verified; of an adapter its own before those of what is below."""
        found: dict[str, bytes] = {}
        for layer in reversed(model.layers):
            for file in (await self._artifacts.manifest(layer.manifest_sha256)).files:
                if file.path in paths and file.path not in found:
                    found[file.path] = await self._artifacts.read_blob(file.sha256)
        return found

    async def _weights(self, reference: str, *kinds: str) -> BaseModel:
        if names.match(names.MODEL, reference):
            base = await self._model(reference, kinds)
        elif names.match(names.TRAINING_CHECKPOINT, reference):
            base = await self._checkpoint(reference, kinds)
        else:
            wanted = f"{names.MODEL} or {names.TRAINING_CHECKPOINT}"
            raise InvalidArgument([Violation("base_model", f"must be of the form {wanted} (got {reference[:120]!r})")])
        for layer in base.layers:
            try:
                # What is gone or cut short is seen now; every byte is read when the job starts.
                await self._artifacts.whole_manifest(layer.manifest_sha256)
            except DataLoss as error:
                found = await self._corruption.of_base(layer.name, layer.manifest_sha256, error)
                raise InvalidArgument.of("base_model", found.message) from error
        return base

    async def _model(self, name: str, kinds: Sequence[str]) -> BaseModel:
        async with self._database.transaction() as connection:
            model = await models.get(connection, name)
        if model is None:
            raise NotFound("MODEL_NOT_FOUND", f"there is no {name}", name=name)
        if model.state is not ModelState.READY:
            raise InvalidArgument.of("base_model", f"{name} is {model.state}; it must be READY")
        found = "reward" if is_reward_model([model.architecture]) else "full"
        if found not in kinds:
            raise InvalidArgument.of("base_model", f"{name} is {_WRONG_KIND[found]}")
        scores = found == "reward"
        return BaseModel(name, model.manifest_sha256, model.parameter_count, model.context_length, scores=scores)

    async def _checkpoint(self, name: str, kinds: Sequence[str]) -> BaseModel:
        async with self._database.transaction() as connection:
            checkpoint = await checkpoints.get(connection, name)
            if checkpoint is None:
                raise NotFound("CHECKPOINT_NOT_FOUND", f"there is no {name}", name=name)
            job = await self._jobs.get(connection, name.rpartition("/checkpoints/")[0])
        if checkpoint.state is not CheckpointState.READY:
            raise InvalidArgument.of("base_model", f"{name} is {checkpoint.state}; it must be READY")
        if checkpoint.kind not in kinds:
            raise InvalidArgument.of("base_model", f"{name} is {_WRONG_KIND[checkpoint.kind]}")
        spec = TrainingSpec(**job.spec)
        under = spec.base_layers if checkpoint.kind == "adapter" else ()
        await self._there(name, under)
        facts = (checkpoint.manifest_sha256, spec.parameter_count, spec.context_length)
        return BaseModel(name, *facts, under, scores=checkpoint.kind == "reward")

    async def _there(self, adapter: str, under: Sequence[Layer]) -> None:
        """Raises InvalidArgument where weights that an adapter lies over are those of nothing that is READY."""
        async with self._database.transaction() as connection:
            gone = [one for one in under if not await references.is_held(connection, one.manifest_sha256)]
        if gone:
            message = (
                f"{adapter} is an adapter over {gone[0].name} as it was then, and those weights (manifest"
                f" {gone[0].manifest_sha256[:12]}) are gone; import the same files again, under any name"
            )
            raise InvalidArgument.of("base_model", message)
