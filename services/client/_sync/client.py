"""`Client`: every service of the mesh through the gateway's gRPC port."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from services.client import references
from services.client._sync.calls import Calls
from services.client._sync.checkpoints import Checkpoints
from services.client._sync.connection import Connection
from services.client._sync.datasets import Datasets
from services.client._sync.models import Models
from services.client._sync.registries import Algorithms, Rewards
from services.client._sync.training_jobs import TrainingJobs
from services.client._sync.uploads import Uploads
from services.client._sync.versions import DatasetVersions
from services.client.endpoint import Endpoint, Where

DATASET_SERVICE, TRAINER_SERVICE = "rlhf.dataset.v1.DatasetService", "rlhf.trainer.v1.TrainerService"


class Client:
    """A connection and what is done with it. Connects at the first call; `with` closes it.

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
        self._connection = Connection(where, patience_seconds, on_lost)
        self._fill(timeout_seconds)

    def _fill(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        datasets, trainer = self.calls(DATASET_SERVICE), self.calls(TRAINER_SERVICE)
        self.datasets = Datasets(datasets, self.project)
        self.dataset_versions = DatasetVersions(datasets, self.project)
        self.uploads = Uploads(datasets, self.project)
        self.models = Models(trainer, self.project)
        self.training_jobs = TrainingJobs(trainer, self.project)
        self.checkpoints = Checkpoints(trainer, self.project)
        self.algorithms = Algorithms(trainer, self.project)
        self.rewards = Rewards(trainer, self.project)

    def calls(self, service: str) -> Calls:
        """Calls of a gRPC service of the mesh, by its full name: what the namespaces of this client are made of."""
        return Calls(self._connection, service, self._timeout_seconds)

    @property
    def endpoint(self) -> Endpoint:
        """Where calls go. Raises Unavailable where no mesh is up, Unauthenticated without a token."""
        return self._connection.endpoint

    def with_timeout(self, seconds: float) -> Client:
        """The same connection, with another deadline for unary calls."""
        other = copy.copy(self)
        other._fill(seconds)
        return other

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
