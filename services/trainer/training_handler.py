"""Carrying out training jobs: bring the inputs, launch or find the run, follow it to its end."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

from services.mesh import client, params, tracing
from services.mesh.errors import (
    NO_ROOM,
    Aborted,
    FailedPrecondition,
    PlatformError,
    ResourceExhausted,
    Unavailable,
)
from services.mesh.job_warnings import JobWarnings
from services.mesh.jobs import Jobs, Lease, State
from services.mesh.postgres import Database
from services.mesh.worker import Ending, Retry
from services.trainer import spool
from services.trainer.algorithms import algorithms
from services.trainer.bringing import WeightsCache, unless
from services.trainer.checkpoint_intake import CheckpointIntake
from services.trainer.dataset_client import DatasetClient
from services.trainer.entities import Layer, SpoolPosition, TrainingSpec
from services.trainer.following import Follower
from services.trainer.keeping import Keeper
from services.trainer.plan import LaunchPlan, PlanInputs, ResumePoint
from services.trainer.runners import Run
from services.trainer.runners.local import LocalRun, last_lines
from services.trainer.settings import Settings
from services.trainer.store import checkpoints, series
from services.trainer.store.models import known_as

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
# What the job's judges have cost, of all its attempts.
LEDGER_FILE = "reward_cost.json"
EXIT_SECONDS = 30.0
# Before the second try of a run that died. Each later pause is twice as long, and no two jobs wait equally long: what
# killed one has often killed many.
_RETRY_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 300.0
_DISK_SECONDS = 10.0
# What every reason of an attempt begins with that counts as a death.
_DIED = "the training process died"
# Ends that are no fault of the job: what it ran on went away under it.
_DEATHS = frozenset({"RAY_UNREACHABLE", "WORKER_DIED", "NODE_DIED"})
_DEATH_REMEDY = "a process that was killed has often run out of memory: lower micro_batch_size"


@dataclass(frozen=True)
class _Inputs:
    """Local paths of what a run reads; `validation` is None without a validation version."""

    model: Path
    train: Path
    validation: Path | None
    # Where each reward model lies, by its reference.
    reward_models: dict[str, str]
    base_name: str


class TrainingHandler:
    """The mesh worker's handler of training jobs."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        jobs: Jobs,
        warnings: JobWarnings,
        weights: WeightsCache,
        datasets: DatasetClient,
        intake: CheckpointIntake,
        keeper: Keeper,
        environment: dict[str, str],
    ) -> None:
        self._settings = settings
        self._database = database
        self._jobs = jobs
        self._warnings = warnings
        self._weights = weights
        self._datasets = datasets
        self._intake = intake
        self._keeper = keeper
        self._environment = environment

    async def run(self, lease: Lease, cancelled: asyncio.Event) -> Ending:
        try:
            run = await self._find(lease) if lease.taken_over else None
            if run is None:
                if cancelled.is_set() or lease.job.state is State.CANCELLING:
                    return Ending(State.CANCELLED)
                run = await self._launch(lease, cancelled)
                if run is None:
                    return Ending(State.CANCELLED)
        except PlatformError as error:
            if client.is_transient(error):
                raise Retry(str(error), _RETRY_SECONDS) from error
            raise
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            await self._report(lease, "waiting_for_disk")
            raise Retry(f"there is no room left on the disk of {self._settings.mesh.home}", _DISK_SECONDS) from error
        try:
            ending = await self._follow(lease, run, cancelled)
        except Exception as error:
            if not _leaves_it_running(error) and not await self._keeper.lost(lease):
                run.kill()
                await self._exited(run)
            raise
        await self._keeper.tidy(lease, succeeded=ending.state is State.SUCCEEDED)
        return ending

    async def _find(self, lease: Lease) -> Run | None:
        """The run that the last holder of the lease had started; None when it had not come so far."""
        async with self._database.transaction() as connection:
            position = await series.position(connection, lease.job.uid)
            attempts = (await self._jobs.attempts(connection, [lease.job.uid]))[lease.job.uid]
        if position is None or not attempts or attempts[-1].end_time is not None:
            return None
        run = self._run(lease, position.attempt)
        return run if (run.folder / "plan.json").exists() else None

    async def _launch(self, lease: Lease, cancelled: asyncio.Event) -> Run | None:
        """None where the job was cancelled while its inputs came."""
        spec = TrainingSpec(**lease.job.spec)
        inputs = await unless(cancelled, self._bring(lease, spec))
        if inputs is None:
            return None
        resume = await self._keeper.resume_point(lease)
        async with self._database.transaction() as connection:
            attempt = await self._jobs.begin_attempt(connection, lease, resume.step if resume else 0)
            old = await series.position(connection, lease.job.uid) or SpoolPosition(0)
            ordinals = (old.metric_ordinal, old.log_ordinal, old.sample_ordinal)
            await series.set_position(connection, lease.job.uid, SpoolPosition(attempt, 0, 0, *ordinals))
            await checkpoints.drop_verifying(connection, lease.job.uid)
            progress = {"phase": "starting", "step_count": resume.step if resume else 0}
            await self._jobs.report(connection, lease, progress)
        run = self._run(lease, attempt)
        await run.start(self._plan(lease, spec, attempt, inputs, resume, run.folder))
        return run

    async def _bring(self, lease: Lease, spec: TrainingSpec) -> _Inputs:
        """Rows and weights on this host, verified."""
        await self._report(lease, "merging" if spec.base_under else "preparing")
        data = self._keeper.folder(lease) / "data"
        model = await self._weights.bring(spec.base_layers)
        train = await self._rows(spec.dataset_version, data / "train.jsonl")
        validation = None
        if spec.validation_dataset_version:
            validation = await self._rows(spec.validation_dataset_version, data / "validation.jsonl")
        judges = {name: Layer(name, sha256) for name, sha256 in spec.reward_models.items()}
        models = {name: str(await self._weights.bring([layer])) for name, layer in judges.items()}
        async with self._database.transaction() as connection:
            base_name = await known_as(connection, spec.base_model)
        return _Inputs(model, train, validation, models, base_name)

    async def _rows(self, version: str, target: Path) -> Path:
        facts = await self._datasets.version(version)
        await self._datasets.download(version, facts.size_bytes, target)
        return target

    def _plan(
        self, lease: Lease, spec: TrainingSpec, attempt: int, inputs: _Inputs, resume: ResumePoint | None, folder: Path
    ) -> LaunchPlan:
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
        return algorithm.plan(params.parse(algorithm.Params, spec.params), plan_inputs)

    async def _follow(self, lease: Lease, run: Run, cancelled: asyncio.Event) -> Ending:
        follower = Follower(self._database, self._jobs, self._warnings, self._intake, lease, run)
        with follower.lag.observed():
            return await self._read_on(follower, lease, run, cancelled)

    async def _read_on(self, follower: Follower, lease: Lease, run: Run, cancelled: asyncio.Event) -> Ending:
        kill_at: float | None = None
        while True:
            # First, whatever it is that reading waits for: who cancels may want to make room by that.
            if cancelled.is_set() and kill_at is None:
                run.request_stop()
                kill_at = time.monotonic() + self._settings.cancel_grace_seconds
            if kill_at is not None and time.monotonic() > kill_at:
                run.kill()
            alive = run.is_alive()
            try:
                end, anything, checkpoints_came = await follower.advance()
                if checkpoints_came:
                    await self._keeper.prune(lease)
            except Unavailable:
                await asyncio.sleep(1)
                continue
            except Aborted as error:
                if error.reason not in ("SPOOL_MOVED", "BLOBS_COLLECTED"):
                    raise
                continue
            except ResourceExhausted:
                # No room for a checkpoint: it stays where the run wrote it, and training goes on.
                await self._report(lease, "waiting_for_disk")
                await asyncio.sleep(_DISK_SECONDS)
                continue
            if not alive and not anything:
                end = end or follower.stored_end()
            if end is not None or (not alive and not anything):
                await self._exited(run)
                return await self._ended(lease, run, end, cancelled)
            await follower.rest()

    async def _ended(self, lease: Lease, run: Run, end: spool.End | None, cancelled: asyncio.Event) -> Ending:
        """How a run that is gone has ended; None when it said nothing: killed, out of memory, or the host went down."""
        if end is None and run.was_told_to_stop() and not cancelled.is_set():
            # As when the mesh is taken down and saving takes longer than that may: no death of the job's doing.
            raise Retry("its process was told to stop and was ended before it had said where", 0)
        if end is None:
            return await self._died(lease, run, f"{_DIED} without a word", cancelled)
        if end.outcome == "failed" and end.reason in _DEATHS:
            return await self._died(lease, run, f"{_DIED}: {end.reason}: {end.message}", cancelled)
        if end.outcome == "succeeded":
            return Ending(State.SUCCEEDED)
        if end.outcome == "stopped" and not cancelled.is_set():
            # By a signal, as when the mesh is taken down: it goes on from what it saved.
            raise Retry(f"its process was told to stop after step {end.step}", 0)
        if end.outcome == "stopped":
            return Ending(State.CANCELLED)
        message = f"{end.message}\nWhat to do: {end.remedy}" if end.remedy else end.message
        error = FailedPrecondition(end.reason or "TRAINING_FAILED", message, step=end.step, remedy=end.remedy)
        return Ending(State.FAILED, error)

    async def _died(self, lease: Lease, run: Run, reason: str, cancelled: asyncio.Event) -> Ending:
        """Try again from the newest checkpoint, so often; while it waits the job holds neither slot nor worker."""
        if cancelled.is_set():
            return Ending(State.CANCELLED)
        async with self._database.transaction() as connection:
            attempts = (await self._jobs.attempts(connection, [lease.job.uid]))[lease.job.uid]
        deaths = 1 + sum(attempt.end_reason.startswith(_DIED) for attempt in attempts)
        if deaths > self._settings.max_retries:
            printed = "".join(f"\n  {line}" for line in await asyncio.to_thread(last_lines, run.folder))
            said = f"\nThe last it printed:{printed}" if printed else ""
            message = f"{reason}; tried {deaths} times{said}\nWhat to do: {_DEATH_REMEDY}"
            return Ending(State.FAILED, PlatformError("RUN_DIED", message, remedy=_DEATH_REMEDY))
        raise Retry(reason, retry_seconds(deaths))

    async def _exited(self, run: Run) -> None:
        """Wait until the process is gone, so that its slots are free when the job has ended."""
        give_up = time.monotonic() + EXIT_SECONDS
        while run.is_alive():
            if time.monotonic() > give_up:
                run.kill()
            await asyncio.sleep(POLL_SECONDS)
        run.clear()

    async def _report(self, lease: Lease, phase: str) -> None:
        async with self._database.transaction() as connection:
            await self._jobs.report(connection, lease, {"phase": phase})

    def _run(self, lease: Lease, attempt: int) -> LocalRun:
        folder = self._keeper.folder(lease) / "attempts" / str(attempt)
        return LocalRun(folder, self._settings.worker_python, self._environment, self._settings.fork_server)


def retry_seconds(deaths: int) -> float:
    """The pause before the next try: exponential, more or less by half at random."""
    pause = min(_RETRY_SECONDS * 2 ** (deaths - 1), _LONGEST_RETRY_SECONDS)
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


def _leaves_it_running(error: Exception) -> bool:
    """Whether the run goes on without us, for the next holder of the lease."""
    return isinstance(error, Unavailable) or (isinstance(error, Aborted) and error.reason == "LEASE_LOST")
