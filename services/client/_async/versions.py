"""Versions of datasets: checked rows that never change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from rlhf.dataset.v1 import dataset_service_pb2 as rpc
from rlhf.dataset.v1.dataset_pb2 import DatasetVersion

from services.client import files, references
from services.client._async.downloading import fetch
from services.client._async.resource import AsyncResource
from services.client.aio import in_thread
from services.client.files import OnProgress


class AsyncDatasetVersions(AsyncResource):
    """A version is `digits:3`, or `digits` for the newest."""

    async def get(self, name: str) -> DatasetVersion:
        """Raises NotFound."""
        request = rpc.GetDatasetVersionRequest(name=references.dataset_version(self._project, name, "name"))
        return await self._calls.call("GetDatasetVersion", request, DatasetVersion)

    def list(self, dataset: str, *, limit: int = 0) -> AsyncIterator[DatasetVersion]:
        """Newest first; 0 takes all."""
        request = rpc.ListDatasetVersionsRequest(parent=references.dataset(self._project, dataset, "dataset"))
        reply = rpc.ListDatasetVersionsResponse
        return self._calls.pages("ListDatasetVersions", request, reply, lambda page: page.dataset_versions, limit)

    def rows(self, name: str, *, first: int = 0, limit: int = 0) -> AsyncIterator[rpc.Row]:
        """Rows from `first`, counted from 0, on. Their numbers are doubles; `download` has them exactly."""
        parent = references.dataset_version(self._project, name, "name")
        request = rpc.ListRowsRequest(parent=parent, first_row_index=first)
        return self._calls.pages("ListRows", request, rpc.ListRowsResponse, lambda page: page.rows, limit)

    async def download(
        self, name: str, to: Path, *, overwrite: bool = False, on_progress: OnProgress = files.ignore
    ) -> DatasetVersion:
        """The rows as lines of JSON in the file `to`, which is there when it is whole. What an earlier try left is gone
        on with. Raises NotFound, AlreadyExists, DataLoss."""
        version = await self.get(name)
        await in_thread(files.make_room, to, overwrite)
        # Named by content: what is left of another version is never gone on with.
        unfinished = to.parent / files.PARTIAL_FOLDER / version.sha256
        partial = await in_thread(files.Partial, unfinished, version.size_bytes)

        def request() -> rpc.DownloadDatasetRequest:
            return rpc.DownloadDatasetRequest(name=version.name, offset_bytes=partial.offset)

        opened = self._calls.resume("DownloadDataset", request, rpc.DownloadDatasetResponse)
        async with aclosing(opened) as replies:
            await fetch(replies, partial, version.size_bytes, on_progress)
        await in_thread(partial.finish, to, "")
        await in_thread(files.remove_if_empty, unfinished.parent)
        return version
