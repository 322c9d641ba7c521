"""Models that jobs start from."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from rlhf.trainer.v1 import trainer_service_pb2 as rpc
from rlhf.trainer.v1.model_pb2 import Model, ModelSource

from services.client import files, references
from services.client._async.downloading import fetch_all
from services.client._async.resource import AsyncResource
from services.client.aio import sleep
from services.client.files import OnProgress
from services.mesh.errors import DeadlineExceeded, FailedPrecondition

_POLL_SECONDS = 0.5


class AsyncModels(AsyncResource):
    async def import_model(
        self,
        name: str,
        source: ModelSource | str,
        *,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        validate_only: bool = False,
    ) -> Model:
        """Begin to copy, hash and load a model: `hf:organisation/name`, a folder on the server, or a ModelSource, which
        can also make one from scratch or of a checkpoint, whose adapter is merged. `wait` for it. Raises AlreadyExists,
        InvalidArgument."""
        if isinstance(source, str):
            source = ModelSource(hub=source) if source.startswith("hf:") else ModelSource(path=source)
        full = references.model(self._project, name, "name")
        request = rpc.ImportModelRequest(
            parent=full.rpartition("/models/")[0],
            model=Model(source=source, display_name=display_name, labels=labels or {}),
            model_id=full.rpartition("/")[2],
            request_id=str(uuid.uuid4()),
            validate_only=validate_only,
        )
        return await self._calls.call("ImportModel", request, Model)

    async def get(self, name: str) -> Model:
        """Raises NotFound."""
        request = rpc.GetModelRequest(name=references.model(self._project, name, "name"))
        return await self._calls.call("GetModel", request, Model)

    async def resolve(self, name: str) -> rpc.ResolveModelResponse:
        """The layers of a model, or of a checkpoint by its full name: full weights, then adapters over them. Raises
        NotFound, InvalidArgument where they cannot be loaded."""
        full = name if "/checkpoints/" in name else references.model(self._project, name, "name")
        request = rpc.ResolveModelRequest(parent=self._project, model=full)
        return await self._calls.call("ResolveModel", request, rpc.ResolveModelResponse)

    def list(self, *, limit: int = 0) -> AsyncIterator[Model]:
        """Newest first; 0 takes all."""
        request = rpc.ListModelsRequest(parent=self._project)
        return self._calls.pages("ListModels", request, rpc.ListModelsResponse, lambda page: page.models, limit)

    async def wait(self, name: str, *, timeout_seconds: float | None = None) -> Model:
        """The model once it is READY or FAILED. Raises DeadlineExceeded after `timeout_seconds`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            found = await self.get(name)
            if found.state != Model.STATE_IMPORTING:
                return found
            if deadline is not None and time.monotonic() + _POLL_SECONDS > deadline:
                raise DeadlineExceeded("WAITED_TOO_LONG", f"{name} is still being imported", name=found.name)
            await sleep(_POLL_SECONDS)

    async def download(
        self, name: str, folder: Path, *, overwrite: bool = False, on_progress: OnProgress = files.ignore
    ) -> Model:
        """Every file under `folder`, each there when it has its SHA-256. What an earlier try left is gone on with.

        Raises FailedPrecondition where it is not READY, AlreadyExists for other files of these names, DataLoss for
        bytes that do not have their hash, InvalidArgument for a path that leads out of `folder`.
        """
        found = await self.get(name)
        if found.state != Model.STATE_READY:
            state = Model.State.Name(found.state).removeprefix("STATE_")
            raise FailedPrecondition("MODEL_NOT_READY", f"{references.short(found.name)} is {state}")

        def opened(path: str, offset: Callable[[], int]) -> AsyncGenerator[rpc.DownloadModelResponse, None]:
            def request() -> rpc.DownloadModelRequest:
                return rpc.DownloadModelRequest(name=found.name, path=path, offset_bytes=offset())

            return self._calls.resume("DownloadModel", request, rpc.DownloadModelResponse)

        await fetch_all(found, folder, opened, overwrite, on_progress)
        return found

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Raises NotFound, FailedPrecondition unless forced while a job or an adapter uses it, which keep what they
        need of its bytes."""
        request = rpc.DeleteModelRequest(name=references.model(self._project, name, "name"), force=force)
        await self._calls.call("DeleteModel", request, Empty)
