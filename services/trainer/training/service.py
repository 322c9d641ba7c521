"""Training jobs: what a request must be, and what a job holds while it runs."""

from __future__ import annotations

from functools import partial

from services.mesh import names
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import InvalidArgument
from services.mesh.events.outbox import EventLog
from services.mesh.jobs.resource import JobKind, JobResource
from services.mesh.jobs.store import Jobs
from services.mesh.rpc.idempotency import RequestKey
from services.trainer.entities import NewTrainingJob, TrainingSpec
from services.trainer.models.resolver import Resolver
from services.trainer.store import checkpoints
from services.trainer.training.checks import Capacity, check
from services.trainer.training.forecast_request import DataForecaster, Forecaster, no_forecast
from services.trainer.training.input_references import hold_inputs
from services.trainer.training.token_lengths import TokenLengths

TRAINING = "training"
TRAINING_JOBS = JobKind(TRAINING, names.TRAINING_JOB, TrainingSpec, "rlhf.event.v1.TrainingJobDeleted")
# How long a look at the rows may keep an answer: of Create, and of a check alone, whose caller waits for nothing else.
CREATE_PATIENCE_SECONDS = 5.0
CHECK_PATIENCE_SECONDS = 15.0


class TrainingJobs(JobResource[NewTrainingJob, TrainingSpec]):
    """Use cases of training jobs: those of every job, and a check that starts nothing."""

    kind = TRAINING_JOBS

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        log: EventLog,
        resolver: Resolver,
        site: Capacity,
        lengths: TokenLengths | None = None,
    ) -> None:
        super().__init__(database, jobs, log)
        self._resolver = resolver
        self._site = site
        self._forecaster = DataForecaster(lengths, resolver) if lengths is not None else None

    async def prepare(self, new: NewTrainingJob, key: RequestKey) -> TrainingSpec:
        return await self.check(new, key, CREATE_PATIENCE_SECONDS)

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

    async def hold(self, connection: Connection, name: str, spec: TrainingSpec) -> None:
        await _hold_weights(connection, spec)
        await hold_inputs(connection, name, spec)


async def _hold_weights(connection: Connection, spec: TrainingSpec) -> None:
    """What the job loads is there until its row says so. Raises InvalidArgument where it was let go since the check."""
    for name in await checkpoints.hold(connection, {**spec.reward_models, spec.base_model: spec.base_manifest_sha256}):
        field = "training_job.base_model" if name == spec.base_model else "training_job.params"
        raise InvalidArgument.of(field, f"{name} was let go a moment ago; name another")
    if spec.resume_from:
        checkpoint = await checkpoints.get(connection, spec.resume_from)
        if checkpoint is None or not checkpoint.training_state_path:
            raise InvalidArgument.of("training_job.resume_from", f"{spec.resume_from} was let go a moment ago")
