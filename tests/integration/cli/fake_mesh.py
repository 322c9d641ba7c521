"""A mesh for the command to talk to: both services in memory behind a real gRPC server, and a home that names it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from rlhf.dataset.v1.dataset_service_pb2_grpc import add_DatasetServiceServicer_to_server
from rlhf.trainer.v1.trainer_service_pb2_grpc import add_TrainerServiceServicer_to_server

from services.mesh import identity
from services.mesh.rpc.interceptors import Errors, Identity
from tests.fix_rogue import socket_folder, tell
from tests.integration.cli.fake_datasets import FakeDatasets
from tests.integration.cli.fake_trainer import FakeTrainer


@dataclass(frozen=True)
class Outcome:
    """What one run of the command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class FakeMesh:
    """The services, the home, and a way to run the command against them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.datasets, self.trainer = FakeDatasets(), FakeTrainer()
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._folder = contextlib.ExitStack()

    async def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        token = identity.ensure_token(self.home / "token")
        self._server = grpc.aio.server(interceptors=[Errors(), Identity(token)])
        add_DatasetServiceServicer_to_server(self.datasets, self._server)
        add_TrainerServiceServicer_to_server(self.trainer, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.add_insecure_port(tell(self.home, self._folder.enter_context(socket_folder()) / "gateway.sock"))
        await self._server.start()

    async def stop(self) -> None:
        for task in self.trainer.tasks:
            task.cancel()
        assert self._server is not None
        await self._server.stop(0)
        self._folder.close()

    async def rlhf(
        self, *arguments: str, check: int | None = 0, environment: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run the command to its end; `check` is the exit code that it must have."""
        process = await self.begin(*arguments, environment=environment)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        outcome = Outcome(process.returncode or 0, out.decode(), err.decode())
        assert check is None or outcome.code == check, outcome
        return outcome

    async def begin(self, *arguments: str, environment: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RLHF_")}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.cli", *arguments,
            env={**kept, "RLHF_HOME": str(self.home), "COLUMNS": "100", **(environment or {})},
            cwd=Path(__file__).parents[3],
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
