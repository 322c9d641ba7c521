"""Carrying out training jobs: bring the inputs, launch or find the run, follow it to its end."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from pathlib import Path

import msgspec

from services.mesh.db.postgres import Database
from services.mesh.errors import NO_ROOM, Aborted, FailedPrecondition, PlatformError, ResourceExhausted, Unavailable
from services.mesh.jobs.store import Jobs, Lease, State
from services.mesh.jobs.warnings import JobWarnings
from services.mesh.jobs.worker import JobResult, Retry
from services.mesh.rpc import client
from services.trainer.checkpoints.ingest import CheckpointIngest
from services.trainer.checkpoints.lifecycle import CheckpointLifecycle
from services.trainer.entities import SpoolPosition, TrainingSpec
from services.trainer.models.weights_cache import cancel_on
from services.trainer.runs import spool
from services.trainer.runs.follower import Follower
from services.trainer.runs.runners import Run
from services.trainer.runs.runners.local import LocalRun, last_lines
from services.trainer.runs.stall import Stall
from services.trainer.settings import Settings
from services.trainer.store import checkpoints, spools
from services.trainer.training import launch_plan as plans
from services.trainer.training.preparation import Preparation

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
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


class TrainingHandler:
    """The mesh worker's handler of training jobs."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        jobs: Jobs,
        warnings: JobWarnings,
        preparation: Preparation,
        intake: CheckpointIngest,
        keeper: CheckpointLifecycle,
        environment: dict[str, str],
    ) -> None:
        self._settings = settings
        self._database = database
        self._jobs = jobs
        self._warnings = warnings
        self._preparation = preparation
        self._intake = intake
        self._keeper = keeper
        self._environment = environment

    async def run(self, lease: Lease, cancelled: asyncio.Event) -> JobResult:
        try:
            run = await self._find(lease) if lease.taken_over else None
            if run is None:
                if cancelled.is_set() or lease.job.state is State.CANCELLING:
                    return JobResult(State.CANCELLED)
                run = await self._launch(lease, cancelled)
                if run is None:
                    return JobResult(State.CANCELLED)
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
        await self._keeper.cleanup(lease, succeeded=ending.state is State.SUCCEEDED)
        return ending

    async def _find(self, lease: Lease) -> Run | None:
        """The run that the last holder of the lease had started; None when it had not come so far."""
        async with self._database.transaction() as connection:
            position = await spools.position(connection, lease.job.uid)
            attempts = (await self._jobs.attempts(connection, [lease.job.uid]))[lease.job.uid]
        if position is None or not attempts or attempts[-1].end_time is not None:
            return None
        run = self._run(lease, position.attempt)
        return run if (run.folder / "plan.json").exists() else None

    async def _launch(self, lease: Lease, cancelled: asyncio.Event) -> Run | None:
        """None where the job was cancelled while its inputs came."""
        spec = TrainingSpec(**lease.job.spec)
        inputs = await cancel_on(cancelled, self._preparation.materialize(lease, spec))
        if inputs is None:
            return None
        resume = await self._keeper.resume_point(lease)
        async with self._database.transaction() as connection:
            attempt = await self._jobs.begin_attempt(connection, lease, resume.step if resume else 0)
            old = await spools.position(connection, lease.job.uid) or SpoolPosition(0)
            ordinals = (old.metric_ordinal, old.log_ordinal, old.sample_ordinal)
            await spools.set_position(connection, lease.job.uid, SpoolPosition(attempt, 0, 0, *ordinals))
            await checkpoints.drop_verifying(connection, lease.job.uid)
            progress = {"phase": "starting", "step_count": resume.step if resume else 0}
            await self._jobs.report(connection, lease, progress)
        run = self._run(lease, attempt)
        await run.start(self._preparation.plan(lease, spec, attempt, inputs, resume, run.folder))
        return run

    async def _follow(self, lease: Lease, run: Run, cancelled: asyncio.Event) -> JobResult:
        stall = Stall(self._settings.stall_seconds, await asyncio.to_thread(_model_bytes, run.folder))
        follower = Follower(self._database, self._jobs, self._warnings, self._intake, lease, run, stall.phase)
        with follower.lag.observed():
            return await self._read_on(follower, stall, lease, run, cancelled)

    async def _read_on(
        self, follower: Follower, stall: Stall, lease: Lease, run: Run, cancelled: asyncio.Event
    ) -> JobResult:
        kill_at: float | None = None
        hang = ""
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
            except (Unavailable, Aborted, ResourceExhausted) as error:
                stall.heard()
                await self._set_right(lease, error)
                continue
            if not alive and not anything:
                end = end or follower.stored_end()
            if end is not None or (not alive and not anything):
                await self._exited(run)
                return await self._ended(lease, run, end, cancelled, hang)
            if anything:
                stall.heard()
            elif not hang and (hang := stall.fault(run)):
                await asyncio.to_thread(run.write_stacks)
                run.kill()
            await follower.rest()

    async def _set_right(self, lease: Lease, error: PlatformError) -> None:
        """Wait for what reading a run needs. Raises the error where waiting brings nothing."""
        if isinstance(error, Unavailable):
            await asyncio.sleep(1)
        elif isinstance(error, ResourceExhausted):
            # No room for a checkpoint: it stays where the run wrote it, and training goes on.
            await self._report(lease, "waiting_for_disk")
            await asyncio.sleep(_DISK_SECONDS)
        elif error.reason not in ("SPOOL_MOVED", "BLOBS_COLLECTED"):
            raise error

    async def _ended(
        self, lease: Lease, run: Run, end: spool.End | None, cancelled: asyncio.Event, hang: str
    ) -> JobResult:
        """How a run that is gone has ended; `end` is None when it said nothing: killed, out of memory, or the host went
        down. `hang` says why it was killed for hanging.
        """
        if end is None and hang:
            kept = f"what its processes were doing is in {run.folder / plans.STACKS_FILE}"
            return await self._died(lease, run, f"{_DIED}: it was killed, as {hang}; {kept}", cancelled)
        if end is None and run.was_told_to_stop() and not cancelled.is_set():
            # As when the mesh is taken down and saving takes longer than that may: no death of the job's doing.
            raise Retry("its process was told to stop and was ended before it had said where", 0)
        if end is None:
            return await self._died(lease, run, f"{_DIED} without a word", cancelled)
        if end.outcome == "failed" and end.reason in _DEATHS:
            return await self._died(lease, run, f"{_DIED}: {end.reason}: {end.message}", cancelled)
        if end.outcome == "succeeded":
            return JobResult(State.SUCCEEDED)
        if end.outcome == "stopped" and not cancelled.is_set():
            # By a signal, as when the mesh is taken down: it goes on from what it saved.
            raise Retry(f"its process was told to stop after step {end.step}", 0)
        if end.outcome == "stopped":
            return JobResult(State.CANCELLED)
        message = f"{end.message}\nWhat to do: {end.remedy}" if end.remedy else end.message
        error = FailedPrecondition(end.reason or "TRAINING_FAILED", message, step=end.step, remedy=end.remedy)
        return JobResult(State.FAILED, error)

    async def _died(self, lease: Lease, run: Run, reason: str, cancelled: asyncio.Event) -> JobResult:
        """Try again from the newest checkpoint, so often; while it waits the job holds neither slot nor lease."""
        if cancelled.is_set():
            return JobResult(State.CANCELLED)
        async with self._database.transaction() as connection:
            attempts = (await self._jobs.attempts(connection, [lease.job.uid]))[lease.job.uid]
        deaths = 1 + sum(attempt.end_reason.startswith(_DIED) for attempt in attempts)
        if deaths > self._settings.max_retries:
            printed = "".join(f"\n  {line}" for line in await asyncio.to_thread(last_lines, run.folder))
            said = f"\nThe last it printed:{printed}" if printed else ""
            message = f"{reason}; tried {deaths} times{said}\nWhat to do: {_DEATH_REMEDY}"
            return JobResult(State.FAILED, PlatformError("RUN_DIED", message, remedy=_DEATH_REMEDY))
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


def _model_bytes(folder: Path) -> int:
    """What the run in `folder` reads to begin with; 0 where that cannot be told."""
    try:
        return sum(path.stat().st_size for path in Path(plans.read(folder).model_path).rglob("*") if path.is_file())
    except (OSError, msgspec.DecodeError):
        return 0


def retry_seconds(deaths: int) -> float:
    """The pause before the next try: exponential, more or less by half at random."""
    pause = min(_RETRY_SECONDS * 2 ** (deaths - 1), _LONGEST_RETRY_SECONDS)
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


def _leaves_it_running(error: Exception) -> bool:
    """Whether the run goes on without us, for the next holder of the lease."""
    return isinstance(error, Unavailable) or (isinstance(error, Aborted) and error.reason == "LEASE_LOST")
