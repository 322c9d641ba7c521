"""What the trainer's processes have to know."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from services.mesh.processes.fork_server import client as fork_server
from services.mesh.settings import Environment, MeshSettings
from services.rewards.spec import CustomCode, RewardSite


@dataclass(frozen=True)
class Settings:
    mesh: MeshSettings
    # Folders on this host that models may be imported from.
    model_roots: tuple[Path, ...]
    dataset_target: str
    # `host:port` of the Ray cluster that trains.
    ray_address: str
    # Ray GPUs of that cluster, logical ones on a machine without a GPU.
    slots: int
    device: str
    # Of one of them; 0 where nobody has said, and whether a job fits is then not asked.
    slot_memory_bytes: int
    # Where runs keep their files.
    jobs_folder: Path
    cache_folder: Path
    # Jobs that one worker follows at a time.
    concurrency: int
    lease_seconds: float
    # How long a cancelled run may take to its next step boundary before it is killed.
    cancel_grace_seconds: float
    # How long a run may report nothing before it counts as hung; longer where its steps are long, see runs/stall.py.
    stall_seconds: float
    # How often a run that died is started again.
    max_retries: int
    # Cancelled and failed jobs whose newest training state stays, for another job to go on from.
    kept_training_states: int
    # Python that runs training, where its pins clash with the services'.
    worker_python: str
    # Socket of the server that forks runs; None starts each anew.
    fork_server: Path | None
    # Whether a user's own reward may run, and whether without a namespace and a user of its own.
    custom_code: CustomCode

    @property
    def reward_site(self) -> RewardSite:
        return RewardSite(
            secrets_folder=str(self.mesh.secrets_folder),
            outbound_allow=self.mesh.outbound_allow,
            custom_code=self.custom_code,
        )

    @classmethod
    def from_env(cls, values: Mapping[str, str] | None = None, *, worker: bool = False) -> Settings:
        """Raises InvalidArgument with everything that is wrong with the environment."""
        env = Environment(values)
        mesh = MeshSettings.read(env, "trainer", worker=worker)
        settings = cls(
            mesh=mesh,
            model_roots=env.paths("RLHF_MODEL_ROOTS"),
            dataset_target=env.endpoint("RLHF_DATASET_TARGET"),
            ray_address=env.address("RLHF_RAY_ADDRESS") if worker else "",
            slots=env.integer("RLHF_TRAINER_SLOTS", 1, 1, 100_000),
            device=env.one_of("RLHF_TRAINER_DEVICE", "cpu", ("cpu", "cuda")),
            slot_memory_bytes=env.integer("RLHF_TRAINER_SLOT_MEMORY_BYTES", 0, 0, 2**60),
            jobs_folder=env.path("RLHF_TRAINER_JOBS_FOLDER", mesh.home / "trainer" / "jobs"),
            cache_folder=env.path("RLHF_CACHE_FOLDER", mesh.home / "cache"),
            concurrency=env.integer("RLHF_TRAINER_CONCURRENCY", 2, 1, 1000),
            lease_seconds=env.number("RLHF_TRAINER_LEASE_SECONDS", 15, 1, 3600),
            cancel_grace_seconds=env.number("RLHF_TRAINER_CANCEL_GRACE_SECONDS", 60, 0, 86_400),
            stall_seconds=env.number("RLHF_TRAINER_STALL_SECONDS", 600, 1, 86_400),
            max_retries=env.integer("RLHF_TRAINER_MAX_RETRIES", 3, 0, 100),
            kept_training_states=env.integer("RLHF_TRAINER_KEPT_TRAINING_STATES", 3, 0, 100_000),
            worker_python=env.text("RLHF_TRAINER_WORKER_PYTHON", sys.executable),
            fork_server=next(iter(env.paths(fork_server.VARIABLE)), None),
            custom_code=cast(CustomCode, env.one_of("RLHF_TRAINER_CUSTOM_CODE", "refuse", get_args(CustomCode))),
        )
        env.done()
        return settings
