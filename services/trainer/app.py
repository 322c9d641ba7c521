"""The trainer's wiring: the service that answers, and the worker that carries out."""

from __future__ import annotations

from rlhf.trainer.v1 import trainer_service_pb2
from rlhf.trainer.v1.trainer_service_pb2_grpc import add_TrainerServiceServicer_to_server

from services.mesh import identity
from services.mesh.rpc.server import Process, Server
from services.mesh.runs.handler import RunRules
from services.mesh.runs.runners import Entrypoint
from services.mesh.service import JobService
from services.mesh.settings import child_environment
from services.mesh.streams.series import Series
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
from services.trainer.training.checks import Capacity
from services.trainer.training.deletion import Deletion
from services.trainer.training.disk_estimate import Disk
from services.trainer.training.handler import RUNNER, TrainingHandler
from services.trainer.training.preparation import Preparation
from services.trainer.training.reward_dry_run import RewardTrials
from services.trainer.training.service import TRAINING, TRAINING_JOBS, TrainingJobs
from services.trainer.training.token_lengths import Asking, TokenLengths

SERVICE = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"]


def build(settings: Settings) -> Server:
    """The service. It reads and writes rows; it never imports torch and never touches Ray."""
    service = JobService("trainer", settings.mesh, "services.trainer")
    database, log, artifacts = service.database, service.log, service.artifacts
    jobs = events.jobs_of(database, log)
    datasets = _datasets(settings)
    announce = events.CheckpointAnnouncer(jobs, log)
    corruption = Corruption(database, artifacts, announce)
    asking = Asking(settings.worker_python, _training_environment(), settings.fork_server)
    lengths = TokenLengths(asking, datasets, settings.cache_folder)
    resolver = Resolver(database, jobs, datasets, artifacts, corruption)
    servicer = Servicer(
        Models(database, jobs, artifacts, corruption, settings.model_roots, resolver.checkpoint),
        resolver,
        TrainingJobs(database, jobs, log, resolver, _capacity(settings), lengths),
        Series(database, jobs, TRAINING_JOBS),
        Checkpoints(database, jobs, artifacts, corruption),
        Deletion(database, jobs, announce, events.deletion_of(jobs, log)),
        RewardTrials(settings, _training_environment(), resolver, artifacts),
    )
    return service.server(
        SERVICE,
        add_TrainerServiceServicer_to_server,
        servicer,
        resources=[datasets],
        counts=[checkpoints_by_state],
        folders=[settings.jobs_folder],
    )


def build_worker(settings: Settings) -> Process:
    """The process that leases jobs. It starts training processes; it never imports torch itself."""
    service = JobService("trainer", settings.mesh, "services.trainer")
    database, log, artifacts = service.database, service.log, service.artifacts
    jobs = events.jobs_of(database, log)
    datasets = _datasets(settings)
    announce = events.CheckpointAnnouncer(jobs, log)
    ingest = CheckpointIngest(artifacts, announce)
    folder, kept = settings.jobs_folder, settings.kept_training_states
    lifecycle = CheckpointLifecycle(database, jobs, service.collector, announce, folder, kept)
    corruption = Corruption(database, artifacts, announce)
    environment = _training_environment()
    weights_process = WeightsProcess(settings.worker_python, environment)
    weights = WeightsCache(artifacts, corruption, weights_process, settings.cache_folder)
    preparation = Preparation(settings, database, jobs, weights, datasets, lifecycle)
    warnings = events.warnings_of(jobs, log)
    rules = RunRules(settings.cancel_grace_seconds, settings.stall_seconds, settings.max_retries)
    runner = Entrypoint(settings.worker_python, RUNNER, environment, settings.fork_server)
    handlers = {
        TRAINING: TrainingHandler(rules, database, jobs, warnings, runner, preparation, ingest, lifecycle),
        IMPORT: ImportHandler(settings, database, jobs, artifacts, weights, weights_process),
    }
    process = service.worker(
        jobs,
        handlers,
        concurrency=settings.concurrency,
        lease_seconds=settings.lease_seconds,
        resources=[datasets],
    )
    process.add_routine("checkpoints", lifecycle.run)
    return process


def _capacity(settings: Settings) -> Capacity:
    disk = Disk.of(settings.jobs_folder, settings.mesh.artifacts_url)
    return Capacity(settings.device, settings.slots, settings.reward_site, disk, settings.slot_memory_bytes or None)


def _datasets(settings: Settings) -> DatasetClient:
    return DatasetClient(settings.dataset_target, identity.read_token(settings.mesh.token_file))


def _training_environment() -> dict[str, str]:
    """Of the processes that load models. One thread each: a second one makes a busy machine slower, not faster."""
    return child_environment(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", PYTHONUNBUFFERED="1")
