"""The trainer's wiring: the service that answers, and the worker that carries out."""

from __future__ import annotations

import functools

from rlhf.trainer.v1 import trainer_service_pb2
from rlhf.trainer.v1.trainer_service_pb2_grpc import add_TrainerServiceServicer_to_server

from services.mesh import identity
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.artifacts.gc import Collector
from services.mesh.artifacts.marker import claim
from services.mesh.db.expiry import Sweeper
from services.mesh.db.postgres import Database
from services.mesh.events.bus import Bus
from services.mesh.events.outbox import EventLog, Relay
from services.mesh.jobs.worker import Worker
from services.mesh.rpc.server import Process, Server
from services.mesh.settings import NATS, child_environment
from services.mesh.telemetry.gauges import Gauges, open_jobs, unpublished_events
from services.models.process import WeightsProcess
from services.trainer import events
from services.trainer.checkpoints.corruption import Corruption
from services.trainer.checkpoints.ingest import CheckpointIngest
from services.trainer.checkpoints.lifecycle import CheckpointLifecycle
from services.trainer.checkpoints.service import Checkpoints
from services.trainer.dataset_client import DatasetClient
from services.trainer.models.import_handler import ImportHandler
from services.trainer.models.resolver import Resolver
from services.trainer.models.service import IMPORT, Models
from services.trainer.models.weights_cache import WeightsCache
from services.trainer.servicer import Servicer
from services.trainer.settings import Settings
from services.trainer.store.checkpoints import by_state as checkpoints_by_state
from services.trainer.streams.series import Series
from services.trainer.training.checks import Capacity
from services.trainer.training.deletion import Deletion
from services.trainer.training.disk_estimate import Disk
from services.trainer.training.handler import TrainingHandler
from services.trainer.training.preparation import Preparation
from services.trainer.training.reward_dry_run import RewardTrials
from services.trainer.training.service import TRAINING, TrainingJobs
from services.trainer.training.token_lengths import Asking, TokenLengths

SCHEMA = "trainer"
SERVICE = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name
PACKAGES = ("services.mesh", "services.trainer")


def build(settings: Settings) -> Server:
    """The service. It reads and writes rows; it never imports torch and never touches Ray."""
    server = Server("trainer", settings.mesh)
    database = Database(settings.mesh.postgres_url, SCHEMA)
    log = EventLog(database)
    jobs = events.jobs_of(database, log)
    artifacts = CollectingStore(settings.mesh.artifacts_url)
    datasets = DatasetClient(settings.dataset_target, identity.read_token(settings.mesh.token_file))
    bus = Bus(settings.mesh.nats_url, "trainer", functools.partial(server.set_serving, NATS))
    disk = Disk.of(settings.jobs_folder, settings.mesh.artifacts_url)
    memory = settings.slot_memory_bytes or None
    site = Capacity(settings.device, settings.slots, settings.reward_site, disk, memory)
    announce = events.CheckpointAnnouncer(jobs, log)
    corruption = Corruption(database, artifacts, announce)
    asking = Asking(settings.worker_python, _training_environment(), settings.fork_server)
    lengths = TokenLengths(asking, datasets, settings.cache_folder)
    resolver = Resolver(database, jobs, datasets, artifacts, corruption)
    training_jobs = TrainingJobs(database, jobs, log, resolver, site, lengths)
    servicer = Servicer(
        Models(database, jobs, artifacts, corruption, settings.model_roots, resolver.checkpoint),
        resolver,
        training_jobs,
        Series(database, jobs),
        Checkpoints(database, jobs, artifacts, corruption),
        Deletion(database, jobs, announce, events.deletion_of(jobs, log)),
        RewardTrials(settings, _training_environment(), resolver, artifacts),
    )
    server.add_step(lambda: database.migrate(*PACKAGES))
    census = Gauges(database, open_jobs, unpublished_events, checkpoints_by_state)
    for resource in (database, datasets, bus, census):
        server.add(resource)
    server.add_step(lambda: claim(database, artifacts))
    server.add_routine("relay", Relay("trainer", database, log, bus).run)
    server.watch_disk(settings.jobs_folder)
    server.serve(SERVICE, lambda grpc_server: add_TrainerServiceServicer_to_server(servicer, grpc_server))
    return server


def build_worker(settings: Settings) -> Process:
    """The process that leases jobs. It starts training processes; it never imports torch itself."""
    process = Process("trainer.worker", settings.mesh.ready_file, settings.mesh.telemetry)
    database = Database(settings.mesh.postgres_url, SCHEMA)
    log = EventLog(database)
    jobs = events.jobs_of(database, log)
    artifacts = CollectingStore(settings.mesh.artifacts_url)
    datasets = DatasetClient(settings.dataset_target, identity.read_token(settings.mesh.token_file))
    announce = events.CheckpointAnnouncer(jobs, log)
    ingest = CheckpointIngest(artifacts, announce)
    warnings = events.warnings_of(jobs, log)
    collector = Collector(database, artifacts, settings.mesh.keep.unfinished_seconds)
    folder, kept = settings.jobs_folder, settings.kept_training_states
    lifecycle = CheckpointLifecycle(database, jobs, collector, announce, folder, kept)
    corruption = Corruption(database, artifacts, announce)
    environment = _training_environment()
    weights_process = WeightsProcess(settings.worker_python, environment)
    weights = WeightsCache(artifacts, corruption, weights_process, settings.cache_folder)
    preparation = Preparation(settings, database, jobs, weights, datasets, lifecycle)
    handlers = {
        TRAINING: TrainingHandler(settings, database, jobs, warnings, preparation, ingest, lifecycle, environment),
        IMPORT: ImportHandler(settings, database, jobs, artifacts, weights, weights_process),
    }
    worker = Worker(
        "trainer.worker",
        database,
        jobs,
        handlers,
        concurrency=settings.concurrency,
        lease_seconds=settings.lease_seconds,
    )
    process.add_step(lambda: database.migrate(*PACKAGES))
    for resource in (database, datasets):
        process.add(resource)
    process.add_step(lambda: claim(database, artifacts))
    process.add_routine("worker", worker.run)
    process.add_routine("mesh sweeper", Sweeper(database, settings.mesh.artifacts_url, settings.mesh.keep).run)
    process.add_routine("checkpoints", lifecycle.run)
    process.add_routine("collector", collector.run)
    return process


def _training_environment() -> dict[str, str]:
    """Of the processes that load models. One thread each: a second one makes a busy machine slower, not faster."""
    return child_environment(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", PYTHONUNBUFFERED="1")
