"""The dataset service's wiring: the service that answers, and the worker that reads files."""

from __future__ import annotations

from google.protobuf.message import Message
from rlhf.dataset.v1 import dataset_service_pb2
from rlhf.dataset.v1.dataset_service_pb2_grpc import add_DatasetServiceServicer_to_server
from rlhf.event.v1.dataset_version_created_pb2 import DatasetVersionCreated
from rlhf.event.v1.training_job_changed_pb2 import TrainingJobChanged

from services.dataset import wire
from services.dataset.datasets import service as dataset_service
from services.dataset.datasets.service import Datasets
from services.dataset.datasets.versions import Announce, Versions
from services.dataset.entities import DatasetVersion
from services.dataset.servicer import Servicer
from services.dataset.settings import Settings
from services.dataset.store.versions import next_sequence
from services.dataset.uploads.service import VALIDATION, UploadRules, Uploads
from services.dataset.uploads.staging import Staging
from services.dataset.uploads.validation_handler import ReaderLimits, ValidationHandler
from services.mesh.db.postgres import Connection
from services.mesh.events.outbox import EventLog
from services.mesh.jobs.store import Job, Jobs, State
from services.mesh.rpc.server import Process, Server
from services.mesh.service import JobService

SERVICE = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"]


def build(settings: Settings) -> Server:
    """The service. It moves bytes and rows of tables; it never parses a file."""
    service = JobService("dataset", settings.mesh, "services.dataset")
    staging = Staging(settings.uploads_folder)
    staging.prepare()
    uploads = Uploads(service.database, Jobs(service.database, _no_event), staging, _rules(settings))
    versions = Versions(service.database, service.artifacts)
    return service.server(
        SERVICE,
        add_DatasetServiceServicer_to_server,
        Servicer(Datasets(service.database), uploads, versions),
        effects={TrainingJobChanged: _note_use},
        folders=[settings.uploads_folder],
    )


def build_worker(settings: Settings) -> Process:
    """The process that leases committed uploads. It hashes and stores; a process of its own parses each file."""
    service = JobService("dataset", settings.mesh, "services.dataset")
    jobs = Jobs(service.database, _no_event)
    staging = Staging(settings.uploads_folder)
    staging.prepare()
    handler = ValidationHandler(
        service.database,
        jobs,
        service.artifacts,
        staging,
        ReaderLimits(settings.reader_memory_bytes, settings.reader_cpu_seconds),
        announcing(service.log),
    )
    process = service.worker(
        jobs, {VALIDATION: handler}, concurrency=settings.concurrency, lease_seconds=settings.lease_seconds
    )
    uploads = Uploads(service.database, jobs, staging, _rules(settings))
    process.add_routine("sweeper", uploads.sweep_forever)
    return process


def announcing(log: EventLog) -> Announce:
    async def announce(connection: Connection, version: DatasetVersion) -> None:
        sequence = await next_sequence(connection, DatasetVersionCreated.DESCRIPTOR.full_name, version.name)
        await log.add(connection, version.name, sequence, wire.version_created(version))

    return announce


async def _note_use(connection: Connection, event: Message) -> None:
    assert isinstance(event, TrainingJobChanged)
    job, resources, sequence, ended = wire.job_use(event)
    await dataset_service.note_use(connection, job, resources, sequence=sequence, ended=ended)


async def _no_event(connection: Connection, job: Job, before: State | None) -> None:
    """Moves of a validation are seen through its upload; what other services hear of is the version."""


def _rules(settings: Settings) -> UploadRules:
    return UploadRules(
        max_bytes=settings.max_upload_bytes,
        expiry_seconds=settings.upload_expiry_seconds,
        write_idle_seconds=settings.write_idle_seconds,
        write_least_bytes_per_second=settings.write_least_bytes_per_second,
        heartbeat_seconds=settings.heartbeat_seconds,
        sweep_seconds=settings.sweep_seconds,
    )
