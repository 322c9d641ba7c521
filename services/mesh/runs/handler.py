"""Jobs whose work is a run: launch it or find it again, follow it to its end, start it again where it died."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import NO_ROOM, Aborted, FailedPrecondition, PlatformError, ResourceExhausted, Unavailable
from services.mesh.jobs.store import Jobs, Lease, State
from services.mesh.jobs.warnings import JobWarnings
from services.mesh.jobs.worker import JobResult, Retry
from services.mesh.rpc import client
from services.mesh.runs import positions, spool
from services.mesh.runs.files import PLAN_FILE, STACKS_FILE
from services.mesh.runs.follower import Follower, Reading
from services.mesh.runs.positions import SpoolPosition
from services.mesh.runs.runners import Entrypoint, Run, runners
from services.mesh.runs.runners.local import last_lines
from services.mesh.runs.stall import Stall

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
EXIT_SECONDS = 30.0
# Before the second try of a run that died. Each later pause is twice as long, and no two jobs wait equally long: what
# killed one has often killed many.
_RETRY_SECONDS = 5.0
_LONGEST_RETRY_SECONDS = 300.0
_DISK_SECONDS = 10.0


@dataclass(frozen=True)
class RunRules:
    """How long a cancelled run may take to its next step boundary before it is killed, how long one may report nothing
    (longer where its steps are long, see stall.py), and how often one that died is started again."""

    cancel_grace_seconds: float
    stall_seconds: float
    max_retries: int


@dataclass(frozen=True)
class Deaths:
    """How a service tells of runs that died. `said` begins the reason of each attempt that counts as a death; `ends`
    are reasons of an End that are no fault of the job: what it ran on went away under it."""

    said: str = "its process died"
    remedy: str = "a process that was killed has often run out of memory"
    ends: frozenset[str] = frozenset()
    # The reason of a job that failed without one.
    failed: str = "RUN_FAILED"


@dataclass(frozen=True)
class Launch:
    """A run to be started: the step that it goes on from, 0 from the beginning, and its plan, which is made once the
    number of its attempt and its folder are known."""

    plan: Callable[[int, Path], bytes]
    resumed_from_step: int = 0


class RunHandler(ABC):
    """The worker's handler of one kind of job. A service subclasses it and says what its runs are."""

    deaths = Deaths()

    def __init__(
        self,
        rules: RunRules,
        database: Database,
        jobs: Jobs,
        warnings: JobWarnings,
        reading: Reading,
        entrypoint: Entrypoint,
    ) -> None:
        self._rules = rules
        self._database = database
        self._jobs = jobs
        self._warnings = warnings
        self._reading = reading
        self._entrypoint = entrypoint

    @abstractmethod
    def folder(self, lease: Lease) -> Path:
        """The folder of the job's files on this host."""

    @abstractmethod
    async def prepare(self, lease: Lease, cancelled: asyncio.Event) -> Launch | None:
        """Bring what a run reads to this host. None where the job was cancelled meanwhile."""

    def target(self, lease: Lease) -> str:
        """The place to run."""
        return "local"

    async def begin(self, connection: Connection, lease: Lease) -> None:
        """Write what belongs to the beginning of an attempt, in its transaction."""

    async def handled(self, lease: Lease) -> None:
        """Do what follows records that the service's handlers have stored."""

    async def cleanup(self, lease: Lease, result: JobResult) -> None:
        """Remove what a run that has ended needs no more."""

    def input_bytes(self, run: Run) -> int:
        """What the run reads to begin with; 0 where that cannot be told."""
        return 0

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
            raise Retry(f"there is no room left on the disk of {self.folder(lease)}", _DISK_SECONDS) from error
        try:
            result = await self._follow(lease, run, cancelled)
        except Exception as error:
            if not _leaves_it_running(error) and not await self._lost(lease):
                run.kill()
                await self._exited(run)
            raise
        await self.cleanup(lease, result)
        return result

    async def _find(self, lease: Lease) -> Run | None:
        """The run that the last holder of the lease had started; None when it had not come so far."""
        async with self._database.transaction() as connection:
            position = await positions.position(connection, lease.job.uid)
            attempts = (await self._jobs.attempts(connection, [lease.job.uid]))[lease.job.uid]
        if position is None or not attempts or attempts[-1].end_time is not None:
            return None
        run = self._run(lease, position.attempt)
        return run if (run.folder / PLAN_FILE).exists() else None

    async def _launch(self, lease: Lease, cancelled: asyncio.Event) -> Run | None:
        """None where the job was cancelled while its inputs came."""
        launch = await self.prepare(lease, cancelled)
        if launch is None:
            return None
        async with self._database.transaction() as connection:
            attempt = await self._jobs.begin_attempt(connection, lease, launch.resumed_from_step)
            old = await positions.position(connection, lease.job.uid) or SpoolPosition(0)
            ordinals = (old.metric_ordinal, old.log_ordinal, old.sample_ordinal)
            await positions.set_position(connection, lease.job.uid, SpoolPosition(attempt, 0, 0, *ordinals))
            await self.begin(connection, lease)
            await self._jobs.report(connection, lease, {"phase": "starting", "step_count": launch.resumed_from_step})
        run = self._run(lease, attempt)
        await run.start(launch.plan(attempt, run.folder))
        return run

    async def _follow(self, lease: Lease, run: Run, cancelled: asyncio.Event) -> JobResult:
        stall = Stall(self._rules.stall_seconds, await asyncio.to_thread(self.input_bytes, run))
        follower = Follower(self._database, self._jobs, self._warnings, self._reading, lease, run, stall.phase)
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
                kill_at = time.monotonic() + self._rules.cancel_grace_seconds
            if kill_at is not None and time.monotonic() > kill_at:
                run.kill()
            alive = run.is_alive()
            try:
                end, anything, handled = await follower.advance()
                if handled:
                    await self.handled(lease)
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
            # No room for what the run saved: it stays where the run wrote it, and the run goes on.
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
        said = self.deaths.said
        if end is None and hang:
            kept = f"what its processes were doing is in {run.folder / STACKS_FILE}"
            return await self._died(lease, run, f"{said}: it was killed, as {hang}; {kept}", cancelled)
        if end is None and run.was_told_to_stop() and not cancelled.is_set():
            # As when the mesh is taken down and saving takes longer than that may: no death of the job's doing.
            raise Retry("its process was told to stop and was ended before it had said where", 0)
        if end is None:
            return await self._died(lease, run, f"{said} without a word", cancelled)
        if end.outcome == "failed" and end.reason in self.deaths.ends:
            return await self._died(lease, run, f"{said}: {end.reason}: {end.message}", cancelled)
        if end.outcome == "succeeded":
            return JobResult(State.SUCCEEDED)
        if end.outcome == "stopped" and not cancelled.is_set():
            # By a signal, as when the mesh is taken down: it goes on from what it saved.
            raise Retry(f"its process was told to stop after step {end.step}", 0)
        if end.outcome == "stopped":
            return JobResult(State.CANCELLED)
        message = f"{end.message}\nWhat to do: {end.remedy}" if end.remedy else end.message
        error = FailedPrecondition(end.reason or self.deaths.failed, message, step=end.step, remedy=end.remedy)
        return JobResult(State.FAILED, error)

    async def _died(self, lease: Lease, run: Run, reason: str, cancelled: asyncio.Event) -> JobResult:
        """Try again, so often; while it waits the job holds neither slot nor lease."""
        if cancelled.is_set():
            return JobResult(State.CANCELLED)
        async with self._database.transaction() as connection:
            attempts = (await self._jobs.attempts(connection, [lease.job.uid]))[lease.job.uid]
        deaths = 1 + sum(attempt.end_reason.startswith(self.deaths.said) for attempt in attempts)
        if deaths > self._rules.max_retries:
            remedy = self.deaths.remedy
            printed = "".join(f"\n  {line}" for line in await asyncio.to_thread(last_lines, run.folder))
            said = f"\nThe last it printed:{printed}" if printed else ""
            message = f"{reason}; tried {deaths} times{said}\nWhat to do: {remedy}"
            return JobResult(State.FAILED, PlatformError("RUN_DIED", message, remedy=remedy))
        raise Retry(reason, retry_seconds(deaths))

    async def _exited(self, run: Run) -> None:
        """Wait until the process is gone, so that its slots are free when the job has ended."""
        give_up = time.monotonic() + EXIT_SECONDS
        while run.is_alive():
            if time.monotonic() > give_up:
                run.kill()
            await asyncio.sleep(POLL_SECONDS)
        run.clear()

    async def _lost(self, lease: Lease) -> bool:
        """Whether somebody else holds the lease: what fails then is that files have moved on under the next holder."""
        try:
            async with self._database.transaction() as connection:
                await self._jobs.held(connection, lease)
        except Aborted:
            return True
        except Unavailable:
            pass
        return False

    async def _report(self, lease: Lease, phase: str) -> None:
        async with self._database.transaction() as connection:
            await self._jobs.report(connection, lease, {"phase": phase})

    def _run(self, lease: Lease, attempt: int) -> Run:
        place = runners.get(self.target(lease))
        return place(self.folder(lease) / "attempts" / str(attempt), self._entrypoint)


def retry_seconds(deaths: int) -> float:
    """The pause before the next try: exponential, more or less by half at random."""
    pause = min(_RETRY_SECONDS * 2 ** (deaths - 1), _LONGEST_RETRY_SECONDS)
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


def _leaves_it_running(error: Exception) -> bool:
    """Whether the run goes on without us, for the next holder of the lease."""
    return isinstance(error, Unavailable) or (isinstance(error, Aborted) and error.reason == "LEASE_LOST")
