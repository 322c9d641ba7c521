"""The dataset service's wiring: the service that answers, and the worker that reads files."""

from __future__ import annotations

import functools

from google.protobuf.message import Message
from rlhf.dataset.v1 import dataset_service_pb2
from rlhf.dataset.v1.dataset_service_pb2_grpc import add_DatasetServiceServicer_to_server
from rlhf.event.v1.dataset_version_created_pb2 import DatasetVersionCreated
from rlhf.event.v1.training_job_changed_pb2 import TrainingJobChanged

from services.dataset import wire
from services.dataset.datasets import service
from services.dataset.datasets.service import Datasets
from services.dataset.datasets.versions import Announce, Versions
from services.dataset.entities import DatasetVersion
from services.dataset.servicer import Servicer
from services.dataset.settings import Settings
from services.dataset.store.versions import next_sequence
from services.dataset.uploads.service import VALIDATION, UploadRules, Uploads
from services.dataset.uploads.staging import Staging
from services.dataset.uploads.validation_handler import ReaderLimits, ValidationHandler
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.artifacts.gc import Collector
from services.mesh.artifacts.marker import claim
from services.mesh.db.expiry import Sweeper
from services.mesh.db.postgres import Connection, Database
from services.mesh.events.consumer import Consumer
from services.mesh.events.outbox import Bus, EventLog, Relay
from services.mesh.jobs.store import Job, Jobs, State
from services.mesh.jobs.worker import Worker
from services.mesh.rpc.server import Process, Server
from services.mesh.settings import NATS
from services.mesh.telemetry.gauges import Gauges, open_jobs, unpublished_events

SCHEMA = "dataset"
SERVICE = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"].full_name
PACKAGES = ("services.mesh", "services.dataset")


def build(settings: Settings) -> Server:
    """The service. It moves bytes and rows of tables; it never parses a file."""
    server = Server("dataset", settings.mesh)
    database = Database(settings.mesh.postgres_url, SCHEMA)
    bus = Bus(settings.mesh.nats_url, "dataset", functools.partial(server.set_serving, NATS))
    staging = Staging(settings.uploads_folder)
    staging.prepare()
    uploads = Uploads(database, Jobs(database, _no_event), staging, _rules(settings))
    artifacts = CollectingStore(settings.mesh.artifacts_url)
    versions = Versions(database, artifacts)
    servicer = Servicer(Datasets(database), uploads, versions)
    server.add_step(lambda: database.migrate(*PACKAGES))
    server.add(database)
    server.add_step(lambda: claim(database, artifacts))
    server.add(bus)
    server.add(Gauges(database, open_jobs, unpublished_events))
    server.add_routine("relay", Relay("dataset", database, EventLog(database), bus).run)
    server.add_routine("uses", Consumer("dataset", database, bus, {TrainingJobChanged: _note_use}).run)
    server.watch_disk(settings.uploads_folder)
    server.serve(SERVICE, lambda grpc_server: add_DatasetServiceServicer_to_server(servicer, grpc_server))
    return server


def build_worker(settings: Settings) -> Process:
    """The process that leases committed uploads. It hashes and stores; a process of its own parses each file."""
    process = Process("dataset.worker", settings.mesh.ready_file, settings.mesh.telemetry)
    database = Database(settings.mesh.postgres_url, SCHEMA)
    jobs = Jobs(database, _no_event)
    staging = Staging(settings.uploads_folder)
    staging.prepare()
    artifacts = CollectingStore(settings.mesh.artifacts_url)
    handler = ValidationHandler(
        database,
        jobs,
        artifacts,
        staging,
        ReaderLimits(settings.reader_memory_bytes, settings.reader_cpu_seconds),
        announcing(EventLog(database)),
    )
    worker = Worker(
        "dataset.worker",
        database,
        jobs,
        {VALIDATION: handler},
        concurrency=settings.concurrency,
        lease_seconds=settings.lease_seconds,
    )
    uploads = Uploads(database, jobs, staging, _rules(settings))
    process.add_step(lambda: database.migrate(*PACKAGES))
    process.add(database)
    process.add_step(lambda: claim(database, artifacts))
    process.add_routine("worker", worker.run)
    process.add_routine("collector", Collector(database, artifacts, settings.mesh.keep.unfinished_seconds).run)
    sweeper = Sweeper(database, settings.mesh.artifacts_url, settings.mesh.keep)
    process.add_routine("mesh sweeper", sweeper.run)
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
    await service.note_use(connection, job, resources, sequence=sequence, ended=ended)


async def _no_event(connection: Connection, job: Job, before: State | None) -> None:
    """Moves of a validation are seen through its upload; what other services hear of is the version."""


def _rules(settings: Settings) -> UploadRules:
    return UploadRules(
        max_bytes=settings.max_upload_bytes,
        expiry_seconds=settings.upload_expiry_seconds,
        write_idle_seconds=settings.write_idle_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        sweep_seconds=settings.sweep_seconds,
    )
