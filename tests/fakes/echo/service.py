"""A job service as a newcomer would write it: all that a service with jobs, runs, events and metrics has to say."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.echo.v1 import echo_service_pb2 as pb  # pyright: ignore[reportMissingImports]
from rlhf.echo.v1 import echo_service_pb2_grpc as pb_grpc  # pyright: ignore[reportMissingImports]

from services.mesh import names
from services.mesh.errors import InvalidArgument
from services.mesh.jobs.resource import JobKind, JobRecord, JobResource, jobs_with_events, warnings_with_events
from services.mesh.jobs.store import Jobs, Lease
from services.mesh.jobs.wire import fill_job, job_change, states
from services.mesh.rpc.idempotency import RequestKey
from services.mesh.rpc.pagination import PageRequest
from services.mesh.rpc.server import Process, Server
from services.mesh.runs.follower import Reading
from services.mesh.runs.handler import Launch, RunHandler, RunRules
from services.mesh.runs.runners import Entrypoint
from services.mesh.service import JobService
from services.mesh.settings import MeshSettings
from services.mesh.streams.series import Series
from services.mesh.streams.wire import BatchMessages


@dataclass(frozen=True)
class NewEcho:
    parent: str
    id: str
    priority: int
    text: str
    times: int


@dataclass(frozen=True)
class EchoSpec:
    text: str
    times: int


ECHO_JOBS = JobKind("echo", "projects/{project}/echoJobs/{echo_job}", EchoSpec)


class EchoJobs(JobResource[NewEcho, EchoSpec]):
    kind = ECHO_JOBS

    async def prepare(self, new: NewEcho, key: RequestKey) -> EchoSpec:
        names.parse(names.PROJECT, new.parent, "parent")
        if not new.text:
            raise InvalidArgument.of("echo_job.text", "must not be empty")
        return EchoSpec(new.text, new.times)


class EchoHandler(RunHandler):
    def folder(self, lease: Lease) -> Path:
        return Path(self._entrypoint.environment["RLHF_HOME"]) / "echo" / str(lease.job.uid)

    async def prepare(self, lease: Lease, cancelled: asyncio.Event) -> Launch:
        return Launch(lambda attempt, folder: json.dumps(lease.job.spec).encode())


def message(record: JobRecord[EchoSpec]) -> Any:
    job = pb.EchoJob(**asdict(record.spec))
    fill_job(job, record)
    return job


class Servicer(pb_grpc.EchoServiceServicer):
    def __init__(self, jobs: EchoJobs, series: Series) -> None:
        self._jobs, self._series = jobs, series
        self._messages = BatchMessages(pb.StreamMetricsResponse, pb.StreamMetricsResponse)

    async def CreateEchoJob(self, request: Any, context: Any) -> Any:
        job = request.echo_job
        new = NewEcho(request.parent, request.echo_job_id, job.priority, job.text, job.times)
        return message(await self._jobs.create(new, RequestKey.of(request.parent, request.request_id, request)))

    async def GetEchoJob(self, request: Any, context: Any) -> Any:
        return message(await self._jobs.get(request.name))

    async def ListEchoJobs(self, request: Any, context: Any) -> Any:
        page = PageRequest.parse(request.page_size, request.page_token, request.parent, sorted(request.states))
        found = await self._jobs.list(request.parent, states(request.states), page)
        return pb.ListEchoJobsResponse(echo_jobs=map(message, found.items), next_page_token=found.next_token)

    async def CancelEchoJob(self, request: Any, context: Any) -> Any:
        return message(await self._jobs.cancel(request.name))

    async def StreamJobEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        last = request.after_sequence
        async for event in self._jobs.events(request.name, last, request.stored_only):
            if event is None:
                yield pb.StreamJobEventsResponse(last_sequence=last)
                continue
            job = event.message(pb.EchoJobChanged).echo_job
            for sent in job_change(pb.StreamJobEventsResponse, "echo_job", job, event):
                last = sent.last_sequence
                yield sent

    async def StreamMetrics(self, request: Any, context: Any) -> AsyncIterator[Any]:
        wanted, after = request.metrics, request.after_ordinal
        async for batch in self._series.metrics(request.name, after, wanted, request.stored_only):
            yield self._messages.metrics(batch)


def jobs_of(service: JobService) -> Jobs:
    changed = {ECHO_JOBS: lambda record, before: pb.EchoJobChanged(echo_job=message(record))}
    return jobs_with_events(service.database, service.log, changed)


def build(settings: MeshSettings) -> Server:
    service = JobService("echo", settings)
    jobs = jobs_of(service)
    servicer = Servicer(EchoJobs(service.database, jobs, service.log), Series(service.database, jobs, ECHO_JOBS))
    descriptor = pb.DESCRIPTOR.services_by_name["EchoService"]
    return service.server(descriptor, pb_grpc.add_EchoServiceServicer_to_server, servicer)


def build_worker(settings: MeshSettings) -> Process:
    service = JobService("echo", settings)
    jobs = jobs_of(service)
    entrypoint = Entrypoint(sys.executable, "tests.fakes.echo.run", {**os.environ, "RLHF_HOME": str(settings.home)})
    warnings = warnings_with_events(jobs, service.log, lambda job, _: pb.EchoJobChanged())
    rules = RunRules(cancel_grace_seconds=10, stall_seconds=60, max_retries=1)
    handler = EchoHandler(rules, service.database, jobs, warnings, Reading("echo.run"), entrypoint)
    return service.worker(jobs, {ECHO_JOBS.name: handler}, concurrency=2, lease_seconds=5)
