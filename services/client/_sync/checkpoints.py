"""Checkpoints: the models that jobs made, in Hugging Face form."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from rlhf.trainer.v1 import trainer_service_pb2 as rpc
from rlhf.type.v1.checkpoint_pb2 import Checkpoint

from services.client import files, references
from services.client._sync.downloading import fetch_all
from services.client._sync.resource import Resource
from services.client.files import OnProgress
from services.mesh.errors import FailedPrecondition, InvalidArgument, NotFound


class Checkpoints(Resource):
    """A checkpoint is `job/step-100`, or `job` for its last that is READY."""

    def get(self, name: str) -> Checkpoint:
        """With its files. Raises NotFound."""
        job, full = references.checkpoint(self._project, name, "name")
        if full is None:
            full = (self.last_ready(job)).name
        return self._calls.call("GetCheckpoint", rpc.GetCheckpointRequest(name=full), Checkpoint)

    def list(self, job: str, *, limit: int = 0) -> Iterator[Checkpoint]:
        """Highest step first; 0 takes all."""
        request = rpc.ListCheckpointsRequest(parent=references.job(self._project, job, "job"))
        reply = rpc.ListCheckpointsResponse
        return self._calls.pages("ListCheckpoints", request, reply, lambda page: page.checkpoints, limit)

    def last_ready(self, job: str) -> Checkpoint:
        """The job's READY checkpoint of the highest step. Raises NotFound."""
        for found in self.list(job):
            if found.state == Checkpoint.STATE_READY:
                return found
        short = references.short(references.job(self._project, job, "job"))
        raise NotFound("NO_CHECKPOINT", f"{short} has no checkpoint that is ready", name=job)

    def download(
        self,
        name: str,
        folder: Path,
        *,
        overwrite: bool = False,
        allow_corrupt: bool = False,
        on_progress: OnProgress = files.ignore,
    ) -> Checkpoint:
        """Every file under `folder`, each there when it has its SHA-256. What an earlier try left is gone on with.

        `allow_corrupt` takes one that could not be confirmed, too, as it is.
        Raises FailedPrecondition where it is not READY, AlreadyExists for other files of these names, DataLoss for
        bytes that do not have their hash, InvalidArgument for a path that leads out of `folder`.
        """
        found = self.get(name)
        if found.state != Checkpoint.STATE_READY and not (allow_corrupt and found.files):
            raise FailedPrecondition("CHECKPOINT_NOT_READY", _not_ready(found))

        def opened(path: str, offset: Callable[[], int]) -> Generator[rpc.DownloadCheckpointResponse, None]:
            def request() -> rpc.DownloadCheckpointRequest:
                return rpc.DownloadCheckpointRequest(
                    name=found.name, path=path, offset_bytes=offset(), allow_corrupt=allow_corrupt
                )

            return self._calls.resume("DownloadCheckpoint", request, rpc.DownloadCheckpointResponse)

        fetch_all(found, folder, opened, overwrite, on_progress)
        return found

    def delete(self, name: str, *, force: bool = False) -> Checkpoint:
        """As it is then, PRUNED. Raises NotFound, FailedPrecondition unless forced while something uses it."""
        job, full = references.checkpoint(self._project, name, "name")
        if full is None:
            raise InvalidArgument.of("name", f"say which checkpoint of {references.short(job)}: JOB/step-N")
        request = rpc.DeleteCheckpointRequest(name=full, force=force)
        return self._calls.call("DeleteCheckpoint", request, Checkpoint)


def _not_ready(found: Checkpoint) -> str:
    state = Checkpoint.State.Name(found.state).removeprefix("STATE_")
    why = f": {found.state_reason}" if found.state_reason else ""
    kept = "; its files are kept, and allow_corrupt (--allow-corrupt) downloads them as they are" if found.files else ""
    return f"{references.short(found.name)} is {state}{why}{kept}"
