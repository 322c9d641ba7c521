"""Training jobs: accept, show, list, cancel, follow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial

from services.mesh import names
from services.mesh.artifacts import references
from services.mesh.db.postgres import Connection, Database, wait
from services.mesh.errors import InvalidArgument, NotFound
from services.mesh.events.outbox import EventLog, StoredEvent, last_sequence
from services.mesh.jobs import queue as job_queue
from services.mesh.jobs import warnings as job_warnings
from services.mesh.jobs.queue import QueuePosition
from services.mesh.jobs.store import TERMINAL, Attempt, Job, Jobs, State, job_topic
from services.mesh.jobs.warnings import JobWarning
from services.mesh.rpc.idempotency import RequestKey, claim, find_previous
from services.mesh.rpc.pagination import Page, PageRequest
from services.trainer.entities import NewTrainingJob, TrainingSpec
from services.trainer.models.resolver import Resolver
from services.trainer.store import checkpoints
from services.trainer.training.checks import Capacity, check
from services.trainer.training.forecast_request import DataForecaster, Forecaster, no_forecast
from services.trainer.training.input_references import hold_inputs
from services.trainer.training.token_lengths import TokenLengths

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
    """Use cases."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        log: EventLog,
        resolver: Resolver,
        site: Capacity,
        lengths: TokenLengths | None = None,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._log = log
        self._resolver = resolver
        self._site = site
        self._forecaster = DataForecaster(lengths, resolver) if lengths is not None else None

    async def create(self, new: NewTrainingJob, key: RequestKey) -> TrainingJob:
        """Accept a job. Raises InvalidArgument with everything that is wrong, AlreadyExists."""
        async with self._database.transaction() as connection:
            made = await find_previous(connection, key)
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
            spec = await check(new, self._site, self._resolver, self._foresee(patience_seconds))
        except InvalidArgument as error:
            raise InvalidArgument([*request_id, *error.violations]) from None
        if request_id:
            raise InvalidArgument(request_id)
        return spec

    def _foresee(self, patience_seconds: float) -> Forecaster:
        if self._forecaster is None:
            return no_forecast
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


async def _hold(connection: Connection, spec: TrainingSpec) -> None:
    """What the job loads is there until its row says so. Raises InvalidArgument where it was let go since the check."""
    for name in await checkpoints.hold(connection, {**spec.reward_models, spec.base_model: spec.base_manifest_sha256}):
        field = "training_job.base_model" if name == spec.base_model else "training_job.params"
        raise InvalidArgument.of(field, f"{name} was let go a moment ago; name another")
    if spec.resume_from:
        checkpoint = await checkpoints.get(connection, spec.resume_from)
        if checkpoint is None or not checkpoint.training_state_path:
            raise InvalidArgument.of("training_job.resume_from", f"{spec.resume_from} was let go a moment ago")


def _training_job(
    job: Job, attempts: list[Attempt], warnings: list[JobWarning], queue: QueuePosition | None
) -> TrainingJob:
    if job.kind != TRAINING:
        raise NotFound("JOB_NOT_FOUND", f"there is no {job.name}", name=job.name)
    return TrainingJob(job, TrainingSpec(**job.spec), attempts, warnings, queue)
