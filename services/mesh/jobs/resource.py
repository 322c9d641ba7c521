"""Jobs as resources of an API: create, get, list, cancel, and follow their events.

`JobKind` names one kind of job, `JobRecord` is one job with all that callers see of it, `JobResource` the use cases. A
service subclasses JobResource and adds what only it knows: what a request must be, and what a job holds while it runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from services.mesh import names
from services.mesh.artifacts import references
from services.mesh.db.postgres import Connection, Database, wait
from services.mesh.errors import InvalidArgument, NotFound
from services.mesh.events.outbox import EventLog, StoredEvent, last_sequence
from services.mesh.jobs import queue as job_queue
from services.mesh.jobs import warnings as job_warnings
from services.mesh.jobs.queue import QueuePosition
from services.mesh.jobs.store import TERMINAL, Attempt, Job, Jobs, State, job_topic
from services.mesh.jobs.warnings import JobWarning, JobWarnings
from services.mesh.rpc.idempotency import RequestKey, claim, find_previous
from services.mesh.rpc.pagination import Page, PageRequest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HEARTBEAT_SECONDS = 10.0


class NewJob(Protocol):
    """The form of a job, as a Create request has it. `id` is empty where the server chooses."""

    @property
    def parent(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def priority(self) -> int: ...


New = TypeVar("New", bound=NewJob)
Spec = TypeVar("Spec", bound="DataclassInstance")


@dataclass(frozen=True)
class JobKind(Generic[Spec]):
    """One kind of job: its word in the table, the pattern of its names, and the dataclass that `Job.spec` holds.

    `deleted_event` is the full name of the event that ends a job's life, where jobs can be deleted.
    """

    name: str
    pattern: str
    spec_type: type[Spec]
    deleted_event: str = ""

    @property
    def collection(self) -> str:
        """`trainingJobs`."""
        return self.pattern.split("/")[-2]

    @property
    def parent_pattern(self) -> str:
        return self.pattern.rsplit("/", 2)[0]


@dataclass(frozen=True)
class JobRecord(Generic[Spec]):
    """A job with its attempts, its warnings, and its place in the queue: None where it waits for nothing."""

    job: Job
    spec: Spec
    attempts: list[Attempt]
    warnings: list[JobWarning] = field(default_factory=list)
    queue: QueuePosition | None = None


# Makes the event of a change, given the state before; None for a new job.
ChangeEvent = Callable[[JobRecord[Any], State | None], Message]
# Writes what belongs to a change of a job that has no events of its own.
OnChange = Callable[[Connection, Job], Awaitable[None]]


async def record(connection: Connection, jobs: Jobs, kind: JobKind[Spec], job: Job) -> JobRecord[Spec]:
    """A job as its events tell it: without a place in the queue. Raises NotFound for a job of another kind."""
    attempts = (await jobs.attempts(connection, [job.uid]))[job.uid]
    warnings = (await job_warnings.of(connection, [job.uid]))[job.uid]
    return _record(kind, job, attempts, warnings)


def jobs_with_events(
    database: Database, log: EventLog, events: Mapping[JobKind[Any], ChangeEvent], others: Mapping[str, OnChange] = {}
) -> Jobs:
    """The jobs of a service. Each change is an event of the job, of a kind in `others` a call; one that has ended holds
    its inputs no more."""
    kinds = {kind.name: (kind, event) for kind, event in events.items()}

    async def announce(connection: Connection, job: Job, before: State | None) -> None:
        if job.state in TERMINAL:
            await references.drop_inputs(connection, job.name)
        if job.kind in others:
            await others[job.kind](connection, job)
            return
        kind, event = kinds[job.kind]
        message = event(await record(connection, jobs, kind, job), before)
        await log.add(connection, job.name, job.sequence, message)

    jobs = Jobs(database, announce)
    return jobs


def warnings_with_events(jobs: Jobs, log: EventLog, event: Callable[[Job, JobWarning], Message]) -> JobWarnings:
    """The warnings of a service's jobs: the first of its kind in an attempt is an event of its job."""

    async def announce(connection: Connection, job: Job, warning: JobWarning) -> None:
        await log.add(connection, job.name, await jobs.next_sequence(connection, job.uid), event(job, warning))

    return JobWarnings(announce)


class JobResource(ABC, Generic[New, Spec]):
    """Use cases of one kind of job."""

    kind: JobKind[Spec]

    def __init__(self, database: Database, jobs: Jobs, log: EventLog) -> None:
        self._database = database
        self._jobs = jobs
        self._log = log

    @abstractmethod
    async def prepare(self, new: New, key: RequestKey) -> Spec:
        """The spec to store. Raises InvalidArgument with everything that is wrong."""

    async def hold(self, connection: Connection, name: str, spec: Spec) -> None:
        """Add references to what the job reads, so that it is there until the job has ended; the lock of references is
        held. Raises InvalidArgument for what was let go since `prepare` looked."""

    async def create(self, new: New, key: RequestKey) -> JobRecord[Spec]:
        """Accept a job. An equal request sent again gets the job that the first one made, however it stands by now.

        Raises InvalidArgument with everything that is wrong, AlreadyExists.
        """
        async with self._database.transaction() as connection:
            previous = await find_previous(connection, key)
        if previous is not None:
            return await self.get(previous)
        spec = await self.prepare(new, key)
        async with self._database.transaction() as connection:
            name = names.child(new.parent, self.kind.collection, new.id or str(names.uuid7()))
            previous = await claim(connection, key, name)
            if previous is None:
                job = await self._jobs.create(connection, self.kind.name, name, asdict(spec), new.priority)
                await references.lock(connection)
                await self.hold(connection, name, spec)
                return await self._whole(connection, job)
        return await self.get(previous)

    async def get(self, name: str) -> JobRecord[Spec]:
        """Raises NotFound."""
        names.parse(self.kind.pattern, name)
        async with self._database.transaction() as connection:
            return await self._whole(connection, await self._jobs.get(connection, name))

    async def list(self, parent: str, states: Iterable[State], page: PageRequest) -> Page[JobRecord[Spec]]:
        """Newest first."""
        names.parse(self.kind.parent_pattern, parent, "parent")
        async with self._database.transaction() as connection:
            rows = await self._jobs.list(connection, self.kind.name, parent, states, page)
            uids = [job.uid for job in rows.items]
            attempts, warnings = await self._jobs.attempts(connection, uids), await job_warnings.of(connection, uids)
            queue = await job_queue.positions(connection, rows.items)
        whole = [
            _record(self.kind, job, attempts[job.uid], warnings[job.uid], queue.get(job.uid)) for job in rows.items
        ]
        return Page(whole, rows.next_token)

    async def cancel(self, name: str) -> JobRecord[Spec]:
        """Raises NotFound, FailedPrecondition from an end state."""
        names.parse(self.kind.pattern, name)
        async with self._database.transaction() as connection:
            return await self._whole(connection, await self._jobs.cancel(connection, name))

    async def events(self, name: str, after_sequence: int, stored_only: bool) -> AsyncIterator[StoredEvent | None]:
        """Every event after `after_sequence`, then each as it happens, until the job has ended. None is a heartbeat."""
        names.parse(self.kind.pattern, name)
        if after_sequence < 0:
            raise InvalidArgument.of("after_sequence", f"must not be negative (got {after_sequence})")
        if self.kind.deleted_event:
            async with self._database.transaction() as connection:
                # What happened to a job that had the name before, and was deleted, is not what happened to this one.
                deleted = await last_sequence(connection, name, self.kind.deleted_event)
                after_sequence = max(after_sequence, deleted)
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

    async def _whole(self, connection: Connection, job: Job) -> JobRecord[Spec]:
        attempts = await self._jobs.attempts(connection, [job.uid])
        warnings = await job_warnings.of(connection, [job.uid])
        queue = await job_queue.positions(connection, [job])
        return _record(self.kind, job, attempts[job.uid], warnings[job.uid], queue.get(job.uid))


def _record(
    kind: JobKind[Spec],
    job: Job,
    attempts: list[Attempt],
    warnings: list[JobWarning],
    queue: QueuePosition | None = None,
) -> JobRecord[Spec]:
    if job.kind != kind.name:
        raise NotFound("JOB_NOT_FOUND", f"there is no {job.name}", name=job.name)
    return JobRecord(job, kind.spec_type(**job.spec), attempts, warnings, queue)
