"""A file on its way into a dataset: hash, send from where an earlier try broke off, commit, watch the check."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli import output
from services.cli.session import Retry, Session
from services.mesh.errors import InvalidArgument, PlatformError

if TYPE_CHECKING:
    from rlhf.dataset.v1.dataset_pb2 import Upload

CHUNK_BYTES = 1024 * 1024
Advance = Callable[[int], None]


async def upload(session: Session, dataset: str, path: Path) -> Upload:
    """Upload `path` into a dataset and follow until SUCCEEDED or FAILED. Goes on with an upload that broke off."""
    size_bytes = await asyncio.to_thread(lambda: path.stat().st_size)
    with _bar(f"hashing {path.name}", size_bytes) as advance:
        sha256 = await asyncio.to_thread(hash_file, path, advance)
    announced = await announce(session, dataset, path.name, size_bytes, sha256)
    if announced.state == announced.STATE_RECEIVING:
        if announced.received_bytes:
            output.hint(f"going on at byte {announced.received_bytes:,} of an upload that broke off")
        with _bar(f"sending {path.name}", size_bytes, announced.received_bytes) as advance:
            await send(session, announced, path, advance)
        announced = await _commit(session, announced.name)
    return await _watch(session, announced)


def hash_file(path: Path, advance: Advance) -> str:
    """Lower-case hex SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


async def announce(session: Session, dataset: str, file_name: str, size_bytes: int, sha256: str) -> Upload:
    from rlhf.dataset.v1.dataset_pb2 import Upload
    from rlhf.dataset.v1.dataset_service_pb2 import CreateUploadRequest

    from services.mesh.client import call

    described = Upload(file_name=file_name, size_bytes=size_bytes, sha256=sha256)
    return await call(session.datasets.CreateUpload(CreateUploadRequest(parent=dataset, upload=described)))


async def send(session: Session, upload: Upload, path: Path, advance: Advance) -> None:
    """Send what the server has not got; after a broken connection it is asked how far it got."""
    from services.mesh.client import call

    retry = Retry(output.hint)
    sent = offset = upload.received_bytes
    while offset < upload.size_bytes:

        def sent_to(position: int) -> None:
            nonlocal sent
            advance(position - sent)
            sent = position

        try:
            answer = await call(session.datasets.WriteUpload(_messages(upload.name, path, offset, sent_to)))
            offset = answer.received_bytes
            retry.succeeded()
        except PlatformError as error:
            if error.code not in ("OUT_OF_RANGE", "ABORTED"):
                await retry.failed(error)
                await retry.reconnect(session)
            received = await _received(session, upload.name, retry)
            if received == offset and error.code in ("OUT_OF_RANGE", "ABORTED"):
                raise
            offset = received
        sent_to(offset)


async def _messages(name: str, path: Path, offset: int, sent_to: Advance) -> AsyncIterator:
    """The requests of one WriteUpload: name and offset in the first message, chunks in all."""
    from rlhf.dataset.v1.dataset_service_pb2 import WriteUploadRequest

    with path.open("rb") as file:
        file.seek(offset)
        request = WriteUploadRequest(name=name, offset_bytes=offset)
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            request.chunk = chunk
            yield request
            offset += len(chunk)
            sent_to(offset)
            request = WriteUploadRequest()


async def _received(session: Session, name: str, retry: Retry) -> int:
    from rlhf.dataset.v1.dataset_service_pb2 import GetUploadRequest

    from services.mesh.client import call

    while True:
        try:
            return (await call(session.datasets.GetUpload(GetUploadRequest(name=name)))).received_bytes
        except PlatformError as error:
            await retry.failed(error)
        await retry.reconnect(session)


async def _commit(session: Session, name: str) -> Upload:
    from rlhf.dataset.v1.dataset_service_pb2 import CommitUploadRequest

    from services.mesh.client import call

    return await call(session.datasets.CommitUpload(CommitUploadRequest(name=name)))


async def _watch(session: Session, upload: Upload) -> Upload:
    """Follow the worker that checks the rows."""
    from rlhf.dataset.v1.dataset_service_pb2 import WatchUploadRequest

    request = WatchUploadRequest(name=upload.name)
    with output.messages().status("checking rows") as status:
        async for reply in session.resume(lambda: session.datasets.WatchUpload(request), output.hint):
            if reply.HasField("upload"):
                upload = reply.upload
                status.update(f"checking rows: {upload.validated_row_count:,} so far")
    return upload


def check_file(path: Path) -> None:
    """Raises InvalidArgument where there is nothing to upload."""
    if not path.is_file():
        raise InvalidArgument.of("FILE", f"{path} is not a file")
    if path.stat().st_size == 0:
        raise InvalidArgument.of("FILE", f"{path} is empty")


@contextlib.contextmanager
def _bar(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar with the rate, on a terminal; its `advance` may be called from any thread."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    console = output.messages()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal, expand=True) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda count: progress.advance(task, count)
