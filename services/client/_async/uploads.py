"""Files on their way into a dataset: hash, send from where an earlier try broke off, commit, follow the check."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from rlhf.dataset.v1 import dataset_service_pb2 as rpc
from rlhf.dataset.v1.dataset_pb2 import SkippedRow, Upload

from services.client import files, references
from services.client._async.resource import AsyncResource
from services.client.aio import in_thread
from services.client.files import OnProgress, Progress, Source
from services.mesh.errors import PlatformError

_ENDED = (Upload.STATE_SUCCEEDED, Upload.STATE_FAILED)


class AsyncUploads(AsyncResource):
    async def upload(
        self,
        dataset: str,
        content: Path | Iterable[bytes],
        *,
        file_name: str = "",
        options: Upload | None = None,
        wait: bool = True,
        on_progress: OnProgress = files.ignore,
    ) -> Upload:
        """Send a file, or bytes under a `file_name`, and follow until SUCCEEDED with a version or FAILED with findings;
        without `wait` until it is committed. Goes on with an upload of the same bytes that broke off.

        `options` says how the rows are read: `field_mapping`, `max_invalid_row_count` or `max_invalid_row_share`,
        `split`; its other fields count for nothing.
        `on_progress` may be called from any thread. Raises NotFound, InvalidArgument, ResourceExhausted.
        """
        source = await in_thread(Source.open, content, file_name, on_progress)
        try:
            described = Upload()
            described.CopyFrom(options or Upload())
            described.file_name, described.size_bytes = source.file_name, source.size_bytes
            described.sha256 = source.sha256
            found = await self.create(dataset, described)
            if found.state == Upload.STATE_RECEIVING:
                await self.write(found, source, on_progress=on_progress)
                found = await self.commit(found.name)
        finally:
            source.close()
        return await self.wait(found.name, on_progress=on_progress) if wait else found

    async def create(self, dataset: str, upload: Upload) -> Upload:
        """Announce a file by name, size and hash; the same again finds the upload that is still receiving."""
        parent = references.dataset(self._project, dataset, "dataset")
        return await self._calls.call("CreateUpload", rpc.CreateUploadRequest(parent=parent, upload=upload), Upload)

    async def get(self, name: str) -> Upload:
        """By its full name. Raises NotFound."""
        return await self._calls.call("GetUpload", rpc.GetUploadRequest(name=name), Upload)

    def list(self, dataset: str, *, limit: int = 0) -> AsyncIterator[Upload]:
        """Newest first; 0 takes all."""
        request = rpc.ListUploadsRequest(parent=references.dataset(self._project, dataset, "dataset"))
        return self._calls.pages("ListUploads", request, rpc.ListUploadsResponse, lambda page: page.uploads, limit)

    def skipped_rows(self, name: str, *, limit: int = 0) -> AsyncIterator[SkippedRow]:
        """The rows that an upload left out, in order; 0 takes all that are kept."""
        request, reply = rpc.ListSkippedRowsRequest(parent=name), rpc.ListSkippedRowsResponse
        return self._calls.pages("ListSkippedRows", request, reply, lambda page: page.skipped_rows, limit)

    async def write(self, upload: Upload, source: Source, *, on_progress: OnProgress = files.ignore) -> None:
        """Send what the server has not got; after a broken connection it is asked how far it got."""
        backoff, offset = self._calls.backoff(), upload.received_bytes
        unreadable: list[Exception] = []
        on_progress(Progress("sending", offset, source.size_bytes))
        while offset < source.size_bytes:
            try:
                requests = _requests(upload.name, source, offset, on_progress, unreadable)
                offset = (await self._calls.write("WriteUpload", requests, Upload)).received_bytes
                self._calls.connection.answered()
                backoff.reset()
            except PlatformError as error:
                is_elsewhere = error.code in ("OUT_OF_RANGE", "ABORTED")
                if not is_elsewhere:
                    await self._calls.recover(backoff, error)
                received = await self._received(upload.name)
                if received == offset and is_elsewhere:
                    raise
                if received > offset:
                    backoff.reset()
                offset = received
            if unreadable:
                raise unreadable[0]
            on_progress(Progress("sending", offset, source.size_bytes))

    async def commit(self, name: str) -> Upload:
        """Have the rows checked. Again returns the upload as it stands."""
        return await self._calls.call("CommitUpload", rpc.CommitUploadRequest(name=name), Upload)

    async def events(self, name: str, *, timeout_seconds: float | None = None) -> AsyncIterator[Upload]:
        """The upload now and after each change, until it has ended; goes on after a broken connection. Raises
        DeadlineExceeded after `timeout_seconds`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds

        def request() -> rpc.StreamUploadEventsRequest:
            return rpc.StreamUploadEventsRequest(name=name)

        last: Upload | None = None
        opened = self._calls.resume("StreamUploadEvents", request, rpc.StreamUploadEventsResponse, deadline)
        async with aclosing(opened) as replies:
            async for reply in replies:
                if reply.HasField("upload") and reply.upload != last:
                    last = reply.upload
                    yield last

    async def wait(
        self, name: str, *, timeout_seconds: float | None = None, on_progress: OnProgress = files.ignore
    ) -> Upload:
        """The upload once it has SUCCEEDED or FAILED. Raises DeadlineExceeded after `timeout_seconds`."""
        found = await self.get(name)
        if found.state not in _ENDED:
            async for found in self.events(name, timeout_seconds=timeout_seconds):
                on_progress(Progress("checking", found.validated_row_count, 0))
        return found

    async def delete(self, name: str) -> None:
        """Throw the bytes away. Raises FailedPrecondition while a worker reads them."""
        await self._calls.call("DeleteUpload", rpc.DeleteUploadRequest(name=name), Empty)

    async def _received(self, name: str) -> int:
        backoff = self._calls.backoff()
        while True:
            try:
                return (await self.get(name)).received_bytes
            except PlatformError as error:
                await self._calls.recover(backoff, error)


async def _requests(
    name: str, source: Source, offset: int, on_progress: OnProgress, unreadable: list[Exception]
) -> AsyncIterator[rpc.WriteUploadRequest]:
    """Of one WriteUpload: name and offset in the first message, chunks in all. Ends early where the source gives out,
    with the reason in `unreadable`: raised here it would look like a lost connection."""
    request = rpc.WriteUploadRequest(name=name, offset_bytes=offset)
    while offset < source.size_bytes:
        try:
            request.chunk = await in_thread(source.read, offset)
            on_progress(Progress("sending", offset, source.size_bytes))
        except Exception as error:
            unreadable.append(error)
            return
        yield request
        offset += len(request.chunk)
        request = rpc.WriteUploadRequest()
