"""What the dataset service and its worker have to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.mesh.settings import Environment, MeshSettings

_GIB = 1 << 30


@dataclass(frozen=True)
class Settings:
    mesh: MeshSettings
    # Where files lie while they arrive; service and worker share it.
    uploads_folder: Path
    max_upload_bytes: int
    # An upload that is neither written nor committed for so long is thrown away.
    upload_expiry_seconds: float
    # A writer that sends nothing for so long is given up, so that its lock does not outlive its connection.
    write_idle_seconds: float
    # Nor one that sends less than this of each such span; 0 asks for no least.
    write_least_bytes_per_second: int
    # How often a watcher hears that the service is still there.
    heartbeat_seconds: float
    # How often the worker looks for expired uploads and files that nobody owns.
    sweep_seconds: float
    # Files that one worker reads at a time.
    concurrency: int
    lease_seconds: float
    # What the process that parses a file may take. Python and pyarrow take some 300 MiB of address space themselves.
    reader_memory_bytes: int
    reader_cpu_seconds: int

    @classmethod
    def from_env(cls, values: Mapping[str, str] | None = None, *, worker: bool = False) -> Settings:
        """Raises InvalidArgument with everything that is wrong with the environment."""
        env = Environment(values)
        mesh = MeshSettings.read(env, "dataset", worker=worker)
        settings = cls(
            mesh=mesh,
            uploads_folder=env.path("RLHF_DATASET_UPLOADS_FOLDER", mesh.home / "uploads"),
            max_upload_bytes=env.integer("RLHF_DATASET_MAX_UPLOAD_BYTES", 64 * _GIB, 1, 1 << 50),
            upload_expiry_seconds=env.number("RLHF_DATASET_UPLOAD_EXPIRY_SECONDS", 7 * 24 * 3600, 1, 365 * 24 * 3600),
            write_idle_seconds=env.number("RLHF_DATASET_WRITE_IDLE_SECONDS", 30, 0.1, 3600),
            write_least_bytes_per_second=env.integer("RLHF_DATASET_WRITE_LEAST_BYTES_PER_SECOND", 1024, 0, 1 << 30),
            heartbeat_seconds=env.number("RLHF_DATASET_HEARTBEAT_SECONDS", 10, 0.1, 3600),
            sweep_seconds=env.number("RLHF_DATASET_SWEEP_SECONDS", 60, 0.1, 24 * 3600),
            concurrency=env.integer("RLHF_DATASET_CONCURRENCY", 2, 1, 1000),
            lease_seconds=env.number("RLHF_DATASET_LEASE_SECONDS", 15, 1, 3600),
            reader_memory_bytes=env.integer("RLHF_DATASET_READER_MEMORY_BYTES", 2 * _GIB, _GIB // 2, 1 << 50),
            reader_cpu_seconds=env.integer("RLHF_DATASET_READER_CPU_SECONDS", 6 * 3600, 1, 7 * 24 * 3600),
        )
        env.done()
        return settings
