"""`AsyncClient`: every service of the mesh through the gateway's gRPC port."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from services.client import references
from services.client._async.calls import AsyncCalls
from services.client._async.checkpoints import AsyncCheckpoints
from services.client._async.connection import AsyncConnection
from services.client._async.datasets import AsyncDatasets
from services.client._async.models import AsyncModels
from services.client._async.registries import AsyncAlgorithms, AsyncRewards
from services.client._async.training_jobs import AsyncTrainingJobs
from services.client._async.uploads import AsyncUploads
from services.client._async.versions import AsyncDatasetVersions
from services.client.endpoint import Endpoint, Where

DATASET_SERVICE, TRAINER_SERVICE = "rlhf.dataset.v1.DatasetService", "rlhf.trainer.v1.TrainerService"


class AsyncClient:
    """A connection and what is done with it. Connects at the first call; `async with` closes it.

    `server` is `host:port` of the gateway's gRPC port and `token` what opens it. What is left out comes from
    RLHF_SERVER, RLHF_TOKEN, RLHF_TOKEN_FILE and RLHF_SERVER_CERTIFICATES, else from the mesh that `rlhf up` has started
    in `home` (RLHF_HOME, `~/.rlhf`). `timeout_seconds` is that of one unary call, tries included; `patience_seconds`
    how long streams and transfers try to reach a mesh that is away. Errors are those of services.mesh.errors.
    """

    def __init__(
        self,
        server: str = "",
        token: str = "",
        *,
        project: str = "default",
        token_file: Path | None = None,
        certificates: Path | None = None,
        home: Path | None = None,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 120.0,
        on_lost: Callable[[str], None] = lambda text: None,
    ) -> None:
        where = Where(server, token, token_file, certificates, home)
        self.project = references.project(project)
        self._connection = AsyncConnection(where, patience_seconds, on_lost)
        self._fill(timeout_seconds)

    def _fill(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        datasets, trainer = self.calls(DATASET_SERVICE), self.calls(TRAINER_SERVICE)
        self.datasets = AsyncDatasets(datasets, self.project)
        self.dataset_versions = AsyncDatasetVersions(datasets, self.project)
        self.uploads = AsyncUploads(datasets, self.project)
        self.models = AsyncModels(trainer, self.project)
        self.training_jobs = AsyncTrainingJobs(trainer, self.project)
        self.checkpoints = AsyncCheckpoints(trainer, self.project)
        self.algorithms = AsyncAlgorithms(trainer, self.project)
        self.rewards = AsyncRewards(trainer, self.project)

    def calls(self, service: str) -> AsyncCalls:
        """Calls of a gRPC service of the mesh, by its full name: what the namespaces of this client are made of."""
        return AsyncCalls(self._connection, service, self._timeout_seconds)

    @property
    def endpoint(self) -> Endpoint:
        """Where calls go. Raises Unavailable where no mesh is up, Unauthenticated without a token."""
        return self._connection.endpoint

    def with_timeout(self, seconds: float) -> AsyncClient:
        """The same connection, with another deadline for unary calls."""
        other = copy.copy(self)
        other._fill(seconds)
        return other

    async def close(self) -> None:
        await self._connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
