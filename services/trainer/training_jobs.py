"""Training jobs: accept, show, list, cancel, follow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from services.mesh import job_queue, job_warnings, names
from services.mesh.artifacts import references
from services.mesh.collecting import CollectingStore
from services.mesh.errors import DataLoss, InvalidArgument, NotFound, Violation
from services.mesh.events import EventLog, StoredEvent, last_sequence
from services.mesh.job_queue import QueuePosition
from services.mesh.job_warnings import JobWarning
from services.mesh.jobs import TERMINAL, Attempt, Job, Jobs, State, job_topic
from services.mesh.pages import Page, PageRequest
from services.mesh.postgres import Connection, Database, wait
from services.mesh.requests import RequestKey, claim, earlier
from services.trainer.architectures import is_reward_model
from services.trainer.checks import Site, check
from services.trainer.corruption import Corruption
from services.trainer.dataset_client import DatasetClient
from services.trainer.entities import (
    BaseModel,
    Checkpoint,
    CheckpointState,
    DatasetVersion,
    Layer,
    ModelState,
    NewTrainingJob,
    TrainingSpec,
)
from services.trainer.foreseeing import DataForecaster, Foresee, nothing_foreseen
from services.trainer.holding import hold_inputs
from services.trainer.store import checkpoints, models
from services.trainer.token_lengths import TokenLengths

TRAINING = "training"
JOB_DELETED = "rlhf.event.v1.TrainingJobDeleted"
HEARTBEAT_SECONDS = 10.0
# How long a look at the rows may keep an answer: of Create, and of a check alone, whose caller waits for nothing else.
CREATE_PATIENCE_SECONDS = 5.0
CHECK_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class TrainingJob:
    """A job with its attempts, and with what its runs warned of."""

    job: Job
    spec: TrainingSpec
    attempts: list[Attempt]
    warnings: list[JobWarning] = field(default_factory=list)
    # None where it does not wait, or is told of in an event.
    queue: QueuePosition | None = None


class TrainingJobs:
    """Use cases. Also the look-ups that a check needs."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        log: EventLog,
        datasets: DatasetClient,
        site: Site,
        artifacts: CollectingStore,
        corruption: Corruption,
        lengths: TokenLengths | None = None,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._log = log
        self._datasets = datasets
        self._site = site
        self._artifacts = artifacts
        self._corruption = corruption
        self._forecaster = DataForecaster(lengths, self) if lengths is not None else None

    async def create(self, new: NewTrainingJob, key: RequestKey) -> TrainingJob:
        """Accept a job. Raises InvalidArgument with everything that is wrong, AlreadyExists."""
        async with self._database.transaction() as connection:
            made = await earlier(connection, key)
        if made is not None:
            return await self.get(made)
        spec = await self.check(new, key, CREATE_PATIENCE_SECONDS)
        async with self._database.transaction() as connection:
            name = names.child(new.parent, "trainingJobs", new.id or str(names.uuid7()))
            known = await claim(connection, key, name)
            if known is None:
                job = await self._jobs.create(connection, TRAINING, name, asdict(spec), new.priority)
                await references.lock(connection)
                await _hold(connection, spec)
                await hold_inputs(connection, name, spec)
                return await self._whole(connection, job)
        return await self.get(known)

    async def check(
        self, new: NewTrainingJob, key: RequestKey, patience_seconds: float = CHECK_PATIENCE_SECONDS
    ) -> TrainingSpec:
        """What `create` would accept. Raises InvalidArgument with everything that is wrong."""
        request_id = names.check_request_id(key.id)
        try:
            spec = await check(new, self._site, self, self._foresee(patience_seconds))
        except InvalidArgument as error:
            raise InvalidArgument([*request_id, *error.violations]) from None
        if request_id:
            raise InvalidArgument(request_id)
        return spec

    def _foresee(self, patience_seconds: float) -> Foresee:
        if self._forecaster is None:
            return nothing_foreseen
        return partial(self._forecaster.foresee, patience_seconds=patience_seconds)

    async def get(self, name: str) -> TrainingJob:
        names.parse(names.TRAINING_JOB, name)
        async with self._database.transaction() as connection:
            return await self._whole(connection, await self._jobs.get(connection, name))

    async def list(self, parent: str, states: Iterable[State], page: PageRequest) -> Page[TrainingJob]:
        """Newest first."""
        names.parse(names.PROJECT, parent, "parent")
        async with self._database.transaction() as connection:
            found = await self._jobs.list(connection, TRAINING, parent, states, page)
            uids = [job.uid for job in found.items]
            attempts, warnings = await self._jobs.attempts(connection, uids), await job_warnings.of(connection, uids)
            queue = await job_queue.positions(connection, found.items)
        whole = [_training_job(job, attempts[job.uid], warnings[job.uid], queue.get(job.uid)) for job in found.items]
        return Page(whole, found.next_token)

    async def cancel(self, name: str) -> TrainingJob:
        """Raises FailedPrecondition from an end state."""
        names.parse(names.TRAINING_JOB, name)
        async with self._database.transaction() as connection:
            return await self._whole(connection, await self._jobs.cancel(connection, name))

    async def _whole(self, connection: Connection, job: Job) -> TrainingJob:
        attempts = await self._jobs.attempts(connection, [job.uid])
        warnings = await job_warnings.of(connection, [job.uid])
        queue = await job_queue.positions(connection, [job])
        return _training_job(job, attempts[job.uid], warnings[job.uid], queue.get(job.uid))

    async def events(self, name: str, after_sequence: int, stored_only: bool) -> AsyncIterator[StoredEvent | None]:
        """Every event after `after_sequence`, then each as it happens, until the job has ended. None is a beat."""
        names.parse(names.TRAINING_JOB, name)
        if after_sequence < 0:
            raise InvalidArgument.of("after_sequence", f"must not be negative (got {after_sequence})")
        async with self._database.transaction() as connection:
            # What happened to a job that had the name before, and was deleted, is not what happened to this one.
            after_sequence = max(after_sequence, await last_sequence(connection, name, JOB_DELETED))
        with self._database.notices.subscribe(job_topic(name)) as changed:
            while True:
                async with self._database.transaction() as connection:
                    job = await self._jobs.get(connection, name)
                    news = job.sequence > after_sequence
                    events = await self._log.after(connection, name, after_sequence) if news else []
                for event in events:
                    after_sequence = event.sequence
                    yield event
                if events and after_sequence < job.sequence:
                    continue
                # Nothing is written down of what lies between: no reason to ask for it over and over.
                after_sequence = max(after_sequence, job.sequence)
                if stored_only or job.state in TERMINAL:
                    return
                if not await wait(changed, HEARTBEAT_SECONDS):
                    yield None

    async def dataset_version(self, name: str) -> DatasetVersion:
        names.parse(names.DATASET_VERSION, name, "dataset_version")
        return await self._datasets.version(name)

    async def base_model(self, reference: str) -> BaseModel:
        """The weights behind a model reference. Raises InvalidArgument when they cannot be trained from."""
        return await self._weights(reference, "full", "adapter")

    async def reward_model(self, reference: str) -> BaseModel:
        """The same of a model that scores. Raises InvalidArgument when it does not."""
        return await self._weights(reference, "reward")

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
        return BaseModel(name, model.manifest_sha256, model.parameter_count, model.context_length)

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
        return BaseModel(name, checkpoint.manifest_sha256, spec.parameter_count, spec.context_length, under)

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


async def _hold(connection: Connection, spec: TrainingSpec) -> None:
    """What the job loads is there until its row says so. Raises InvalidArgument where it was let go since the check."""
    for name in await checkpoints.hold(connection, {**spec.reward_models, spec.base_model: spec.base_manifest_sha256}):
        field = "training_job.base_model" if name == spec.base_model else "training_job.params"
        raise InvalidArgument.of(field, f"{name} was let go a moment ago; name another")
    if spec.resume_from:
        checkpoint = await checkpoints.get(connection, spec.resume_from)
        if checkpoint is None or not checkpoint.training_state_path:
            raise InvalidArgument.of("training_job.resume_from", f"{spec.resume_from} was let go a moment ago")


# What is wrong with weights, by the kind that they are.
_WRONG_KIND = {
    "reward": "a reward model, which scores conversations and writes none; a job starts from a language model",
    "full": "a language model, which gives no scores; train a reward model from it with reward_model",
    "adapter": "an adapter of a language model; name a checkpoint of reward_model",
}


def _training_job(
    job: Job, attempts: list[Attempt], warnings: list[JobWarning], queue: QueuePosition | None
) -> TrainingJob:
    if job.kind != TRAINING:
        raise NotFound("JOB_NOT_FOUND", f"there is no {job.name}", name=job.name)
    return TrainingJob(job, TrainingSpec(**job.spec), attempts, warnings, queue)
