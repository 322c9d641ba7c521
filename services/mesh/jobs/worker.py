"""The loop that all workers share: lease a job, run its handler with heartbeats beside it, write down how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.mesh import identity
from services.mesh.db.postgres import Connection, Database, wait
from services.mesh.errors import Aborted, PlatformError, Unavailable
from services.mesh.jobs.store import QUEUE_TOPIC, TERMINAL, Job, Jobs, Lease, State, job_topic
from services.mesh.telemetry import metrics, tracing

log = logging.getLogger(__name__)

# How often an idle worker looks for jobs that nobody announced: leases that ran out, retries whose time has come.
POLL_SECONDS = 2.0
# Each report of progress wakes the heartbeat too, which is there for cancellation: at most ten beats a second.
_BEAT_GAP_SECONDS = 0.1
# Between a handler's failure for want of a dependency and the next try.
AWAY_SECONDS = 2.0
_LAST_SECONDS = 5.0


@dataclass(frozen=True)
class JobResult:
    """How a job ended. `then` writes what belongs to the ending into the same transaction, before the state moves; it
    may raise Retry.
    """

    state: State
    error: PlatformError | None = None
    then: Callable[[Connection], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        if self.state not in TERMINAL:
            raise ValueError(f"a job does not end in {self.state}")


class Retry(Exception):
    """Raised by a handler: this attempt failed for a reason that another one may not meet."""

    def __init__(self, reason: str, delay_seconds: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay_seconds = delay_seconds


class Handler(Protocol):
    """Runs the jobs of one kind.

    A PlatformError fails the job with that error, any other exception with INTERNAL, Retry queues it again. Unavailable
    does not fail it: what the handler needs is away, so the job stays RUNNING and is taken over a little later, as if
    its worker had died. `cancelled` is set when a caller wants the job to stop; the handler ends with State.CANCELLED
    when it has. Being cancelled as a task means that the lease is lost or the worker stops: leave everything as it is.
    """

    async def run(self, lease: Lease, cancelled: asyncio.Event) -> JobResult: ...


class Worker:
    """Leases up to `concurrency` jobs at a time of the kinds it has handlers for."""

    def __init__(
        self,
        name: str,
        database: Database,
        jobs: Jobs,
        handlers: Mapping[str, Handler],
        *,
        concurrency: int,
        lease_seconds: float,
    ) -> None:
        self._owner = f"{name}@{socket.gethostname()}:{os.getpid()}"
        self._principal = identity.Principal(f"service:{name}")
        self._database = database
        self._jobs = jobs
        self._handlers = handlers
        self._concurrency = concurrency
        self._lease_seconds = lease_seconds

    async def run(self) -> None:
        """Until cancelled. Jobs that run then are released: the next worker takes them over."""
        identity.become(self._principal)
        running: set[asyncio.Task[None]] = set()
        try:
            with self._database.notices.subscribe(QUEUE_TOPIC) as queue:
                while True:
                    places = self._concurrency - len(running)
                    lease = await self._claim(places) if places > 0 else None
                    if lease is not None:
                        task = asyncio.create_task(self._work(lease), name=lease.job.name)
                        running.add(task)
                        task.add_done_callback(running.discard)
                        task.add_done_callback(lambda _: queue.set())
                        continue
                    await wait(queue, POLL_SECONDS)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _claim(self, places: int) -> Lease | None:
        try:
            return await self._jobs.claim(self._handlers, self._owner, self._lease_seconds, places)
        except Unavailable:
            return None

    async def _work(self, lease: Lease) -> None:
        attributes = {"rlhf.job.name": lease.job.name, "rlhf.job.kind": lease.job.kind}
        kind = tracing.SpanKind.CONSUMER
        with tracing.span(f"work on {lease.job.kind} job", kind, lease.job.traceparent, attributes):
            await self._hold(lease)

    async def _hold(self, lease: Lease) -> None:
        """Run the handler until it is done or the lease is lost."""
        log.info("leased %s", lease.job.name, extra={"job": lease.job.name, "taken_over": lease.taken_over})
        cancelled = asyncio.Event()
        handler = asyncio.create_task(self._handlers[lease.job.kind].run(lease, cancelled))
        heart = asyncio.create_task(self._beat(lease, cancelled))
        finished = False
        try:
            await asyncio.wait({handler, heart}, return_when=asyncio.FIRST_COMPLETED)
            if not handler.done():
                await heart  # raises: the lease is lost
            await _to_the_end(self._finish(lease, self._ending(lease, handler)))
            finished = True
        except Unavailable as error:
            log.warning("%s waits for what it needs: %s", lease.job.name, error)
            await asyncio.sleep(AWAY_SECONDS)
        except Aborted as error:
            log.warning("gave up %s: %s", lease.job.name, error)
        except Exception:
            log.exception("gave up %s", lease.job.name)
        finally:
            for task in (handler, heart):
                task.cancel()
            await asyncio.gather(handler, heart, return_exceptions=True)
            if not finished:  # only now that the handler has really stopped; nothing happens when the lease is gone
                with contextlib.suppress(PlatformError):
                    await self._jobs.release(lease)

    async def _beat(self, lease: Lease, cancelled: asyncio.Event) -> None:
        with self._database.notices.subscribe(job_topic(lease.job.name)) as changed:
            while True:
                with contextlib.suppress(Unavailable):
                    job = await self._jobs.heartbeat(lease, self._lease_seconds)
                    if job.state is State.CANCELLING:
                        cancelled.set()
                await asyncio.sleep(_BEAT_GAP_SECONDS)
                await wait(changed, self._lease_seconds / 3)

    def _ending(self, lease: Lease, handler: asyncio.Task[JobResult]) -> JobResult | Retry:
        """What a handler that is done said. Raises Unavailable, Aborted when it lost the lease."""
        try:
            return handler.result()
        except Retry as retry:
            return retry
        except Unavailable:
            raise
        except Aborted as error:
            if error.reason == "LEASE_LOST":
                raise
            return JobResult(State.FAILED, error)
        except PlatformError as error:
            return JobResult(State.FAILED, error)
        except (Exception, asyncio.CancelledError):  # cancelled by its own doing: nobody here has cancelled it yet
            log.exception("handler of %s failed", lease.job.name)
            return JobResult(State.FAILED, _internal_error())

    async def _finish(self, lease: Lease, ending: JobResult | Retry) -> None:
        """Write the ending, waiting for the database as long as it takes.

        An ending that cannot be written, such as a move that the table forbids, fails the job: left alone it would be
        leased and run again for ever.
        """
        while True:
            try:
                async with self._database.transaction() as connection:
                    job = await self._write_ending(connection, lease, ending)
                _count(job)
                return
            except Unavailable:
                await asyncio.sleep(1)
            except Retry as retry:
                ending = retry
            except Exception as error:
                nothing_simpler = isinstance(ending, JobResult) and ending.state is State.FAILED and ending.then is None
                if nothing_simpler or (isinstance(error, Aborted) and error.reason == "LEASE_LOST"):
                    raise
                log.exception("the ending of %s cannot be written", lease.job.name)
                ending = JobResult(State.FAILED, error if isinstance(error, PlatformError) else _internal_error())

    async def _write_ending(self, connection: Connection, lease: Lease, ending: JobResult | Retry) -> Job:
        job = await self._jobs.held(connection, lease)
        if isinstance(ending, Retry):
            await self._jobs.end_attempt(connection, lease, ending.reason)
            if job.state is State.CANCELLING:
                return await self._jobs.move(connection, job, State.CANCELLED)
            return await self._jobs.move(connection, job, State.QUEUED, delay_seconds=ending.delay_seconds)
        reason = str(ending.error) if ending.error else "" if ending.state is State.SUCCEEDED else "cancelled"
        await self._jobs.end_attempt(connection, lease, reason)
        if ending.then is not None:
            await ending.then(connection)
        return await self._jobs.move(connection, job, ending.state, ending.error)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; when we are cancelled meanwhile it has a few seconds more: a whole run must not be for nothing."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_LAST_SECONDS)
        task.cancel()
        raise


def _internal_error() -> PlatformError:
    trace = {"trace_id": found} if (found := tracing.trace_id()) else {}
    return PlatformError("INTERNAL", "internal error; the worker's log has the details", **trace)


def _count(job: Job) -> None:
    """What a job has come to, once it is written."""
    if job.end_time is None:
        metrics.instruments().job_retries.add(1, {"rlhf.job.kind": job.kind})
        return
    seconds = (job.end_time - (job.start_time or job.create_time)).total_seconds()
    outcome = {"rlhf.job.kind": job.kind, "rlhf.job.state": str(job.state)}
    metrics.instruments().job_duration.record(max(0.0, seconds), outcome)
