"""What the benches of series run on: embedded PostgreSQL and NATS, and the trainer, its worker and the gateway as
processes of their own, with runs that report at a given pace in place of training."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import httpx
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceServicer, add_DatasetServiceServicer_to_server

from services.mesh import identity, names
from services.mesh.artifacts import ArtifactStore
from services.mesh.processes import procfs
from services.supervisor import embedded
from services.supervisor.embedded.ports import free_port
from tests.fix_references import insert_model

PARENT = "projects/default"
VERSION = f"{PARENT}/datasets/d/versions/1"
_ROWS = b'{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}\n' * 64
_TICKS = os.sysconf("SC_CLK_TCK")


class _Rows(DatasetServiceServicer):
    async def GetDatasetVersion(self, request: Any, context: Any) -> dataset_pb2.DatasetVersion:  # type: ignore[override]
        return dataset_pb2.DatasetVersion(name=VERSION, format="messages", row_count=64, size_bytes=len(_ROWS))

    async def DownloadDataset(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        yield dataset_service_pb2.DownloadDatasetResponse(chunk=_ROWS[request.offset_bytes :])


class Rig:
    """`postgres` is the server, `database_url` the trainer's database, `port` that of the gateway for HTTP."""

    def __init__(self, root: Path, postgres: embedded.Postgres) -> None:
        self.postgres = postgres
        self.database_url = postgres.url
        self.port = free_port()
        self.token = identity.ensure_token(root / "token")
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=httpx.Timeout(30, pool=None),
        )
        # Of every process; `rig` fills it.
        self.environment: dict[str, str] = {}
        self._root = root
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, environment: dict[str, str]) -> None:
        """`python -m services.<name>`."""
        command = [sys.executable, "-m", f"services.{name}"]
        with (self._root / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def start_worker(self, keys: int, steps_per_second: float) -> Path:
        """Start the worker whose runs have this pace; returns the file whose appearance makes them begin."""
        begin = self._root / f"begin-{names.uuid7()}"
        words = {"keys": keys, "steps_per_second": steps_per_second, "start": str(begin)}
        self.start("trainer.worker", {**self.environment, "PACE": json.dumps(words)})
        return begin

    async def stop(self, *names_: str) -> None:
        for name in names_ or list(self._processes):
            process = self._processes.pop(name)
            process.terminate()
            await asyncio.to_thread(process.wait, 30)

    async def ready(self) -> None:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await self.client.get("/readyz")).is_success:
                        return
                await asyncio.sleep(0.05)

    def cpu_seconds(self) -> dict[str, float]:
        """What each process has used, those of PostgreSQL together (its ended ones included)."""
        used = {name: cpu_seconds_of(process.pid) for name, process in self._processes.items()}
        return used | {"postgres": _cpu_seconds(procfs.in_folder(self.postgres.data))}

    async def create(self, steps: int) -> str:
        """A job whose run takes so many steps; its name."""
        job = {
            "algorithm": "sft",
            "baseModel": f"{PARENT}/models/base",
            "datasetVersion": VERSION,
            "params": {"batch_size": 8, "max_length": 32, "steps": steps},
        }
        reply = await self.client.post(f"/v1/{PARENT}/trainingJobs", json=job)
        assert reply.is_success, reply.text
        return reply.json()["name"]

    async def started(self, jobs: Iterable[str]) -> None:
        """Wait until each run is there and waits for its sign to begin."""
        async with asyncio.timeout(300):
            for name in jobs:
                while (await self.job(name)).get("phase") != "training":  # noqa: ASYNC110 - over HTTP
                    await asyncio.sleep(0.1)

    async def ended(self, jobs: Iterable[str]) -> None:
        async with asyncio.timeout(900):
            for name in jobs:
                while "endTime" not in (job := await self.job(name)):  # noqa: ASYNC110 - over HTTP
                    await asyncio.sleep(0.1)
                assert job["state"] == "JOB_STATE_SUCCEEDED", job

    async def job(self, name: str) -> dict[str, Any]:
        reply = await self.client.get(f"/v1/{name}")
        assert reply.is_success, reply.text
        return reply.json()


def cpu_seconds_of(pid: int) -> float:
    """What a process and its descendants have used, those that ended included."""
    family, found = [pid], 0
    while found < len(family):
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{family[found]}/task").glob("*/children"):
                family += map(int, children.read_text().split())
        found += 1
    return _cpu_seconds(family)


def _cpu_seconds(pids: Iterable[int]) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


@contextlib.asynccontextmanager
async def rig(root: Path, concurrency: int) -> AsyncIterator[Rig]:
    """All of it, up to `concurrency` runs at a time. `start_worker` starts the worker, once the pace is known."""
    dataset = grpc.aio.server()
    add_DatasetServiceServicer_to_server(_Rows(), dataset)
    dataset_port = dataset.add_insecure_port("127.0.0.1:0")
    await dataset.start()
    async with embedded.postgres(root / "postgres") as postgres, embedded.nats(root / "nats") as nats:
        found = Rig(root, postgres)
        trainer_port = free_port()
        found.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RLHF_")},
            "RLHF_HOME": str(root),
            "RLHF_POSTGRES_URL": postgres.url,
            "RLHF_NATS_URL": nats.url,
            "RLHF_DATASET_TARGET": f"127.0.0.1:{dataset_port}",
            "RLHF_TRAINER_TARGET": f"127.0.0.1:{trainer_port}",
            "RLHF_TRAINER_LISTEN": f"127.0.0.1:{trainer_port}",
            "RLHF_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{found.port}",
            "RLHF_RAY_ADDRESS": "127.0.0.1:1",
            "RLHF_TRAINER_CONCURRENCY": str(concurrency),
            "RLHF_TRAINER_WORKER_PYTHON": str(_paced_python(root)),
        }
        try:
            found.start("trainer", found.environment)
            found.start("gateway", {**found.environment, "RLHF_DATASET_TARGET": ""})
            await found.ready()
            await _ready_model(root, postgres.url)
            yield found
        finally:
            await found.client.aclose()
            await found.stop()
    await dataset.stop(0)


def _paced_python(root: Path) -> Path:
    """What the worker starts in place of `python -m services.trainer.verl.runner FOLDER`."""
    path = root / "python"
    repository = Path(__file__).parents[2]
    script = Path(__file__).with_name("paced_run.py")
    path.write_text(f'#!/bin/sh\nPYTHONPATH={repository} exec {sys.executable} {script} "$@"\n')
    path.chmod(0o755)
    return path


async def _ready_model(root: Path, postgres_url: str) -> None:
    """A model whose bytes are never read."""
    folder = root / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    manifest = await ArtifactStore(f"file://{root}/artifacts").put_folder(folder)
    await insert_model(postgres_url, f"{PARENT}/models/base", manifest, context_length=64)
