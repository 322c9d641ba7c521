"""Uploads: a file is announced, arrives in as many calls as it takes, is committed, and becomes a version or not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace

import msgspec

from services.dataset.entities import Upload, UploadState
from services.dataset.store import datasets, skipped_rows, uploads
from services.dataset.uploads.new_upload import NewUpload
from services.dataset.uploads.options import to_json
from services.dataset.uploads.options_checks import check_against_dataset
from services.dataset.uploads.pace import Pace
from services.dataset.uploads.skipped_rows import MAX_ROWS as MAX_SKIPPED_ROWS
from services.dataset.uploads.skipped_rows import SkippedRow
from services.dataset.uploads.staging import SWEEP_TOPIC, Staging
from services.mesh import identity, names
from services.mesh.db.postgres import Database, wait
from services.mesh.errors import (
    FailedPrecondition,
    InvalidArgument,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    Violation,
)
from services.mesh.jobs.store import Jobs, job_topic, progress_topic
from services.mesh.rpc.pagination import Page, PageRequest
from services.mesh.telemetry import metrics
from services.mesh.validation.partial import find_or_report

log = logging.getLogger(__name__)

VALIDATION = "validation"
# A page of skipped rows ends once it holds this much.
MAX_PAGE_BYTES = 2 * 1024 * 1024
# Of one message of WriteUpload.
MAX_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Piece:
    """One message of a writer. `name` and `offset_bytes` count in the first one only."""

    name: str
    offset_bytes: int
    chunk: bytes


@dataclass(frozen=True)
class UploadRules:
    max_bytes: int
    expiry_seconds: float
    write_idle_seconds: float
    write_least_bytes_per_second: int
    heartbeat_seconds: float
    sweep_seconds: float


class Uploads:
    """Use cases."""

    def __init__(self, database: Database, jobs: Jobs, staging: Staging, rules: UploadRules) -> None:
        self._database = database
        self._jobs = jobs
        self._staging = staging
        self._rules = rules

    async def create(self, new: NewUpload) -> Upload:
        """Announce a file. Raises InvalidArgument, NotFound, ResourceExhausted when the disk cannot hold it."""
        violations = new.check(self._rules.max_bytes)
        if names.match(names.DATASET, new.parent) is None:
            violations.insert(0, Violation("parent", f"must be of the form {names.DATASET}"))
            raise InvalidArgument(violations)
        uid = names.uuid7()
        async with self._database.transaction() as connection:
            if violations:
                # Told with the rest; by itself it is NOT_FOUND.
                await find_or_report(datasets.get(connection, new.parent), "parent", violations)
                raise InvalidArgument(violations)
            dataset = await datasets.get(connection, new.parent)
            if wrong := await check_against_dataset(connection, new.options, dataset):
                raise InvalidArgument(wrong)
            upload = await uploads.announce(
                connection,
                uid,
                names.child(new.parent, "uploads", str(uid)),
                dataset.uid,
                file_name=new.file_name,
                size_bytes=new.size_bytes,
                sha256=new.sha256,
                options=to_json(new.options),
                expiry_seconds=self._rules.expiry_seconds,
            )
            upload = self._with_bytes(upload)
            self._check_room(upload)
            return upload

    async def get(self, name: str) -> Upload:
        """Raises NotFound."""
        names.parse(names.UPLOAD, name)
        async with self._database.transaction() as connection:
            return self._with_bytes(await uploads.get(connection, name))

    async def list_(self, parent: str, page: PageRequest) -> Page[Upload]:
        """Newest first. Raises NotFound for the dataset."""
        names.parse(names.DATASET, parent, "parent")
        async with self._database.transaction() as connection:
            dataset = await datasets.get(connection, parent)
            found = await uploads.list_(connection, dataset.uid, page)
        return page.page([self._with_bytes(upload) for upload in found], lambda upload: (str(upload.uid),))

    async def skipped_rows(self, parent: str, page: PageRequest) -> Page[SkippedRow]:
        """Rows that an upload left out, in order; a page ends early at MAX_PAGE_BYTES. Raises NotFound."""
        names.parse(names.UPLOAD, parent, "parent")
        first = page.after[0] if page.after else 0
        if not isinstance(first, int) or not 0 <= first <= MAX_SKIPPED_ROWS:
            raise InvalidArgument.of("page_token", "is not a token that a list returned")
        async with self._database.transaction() as connection:
            upload = await uploads.get(connection, parent)
            found, total = await skipped_rows.read(connection, upload.uid, first, page.size, MAX_PAGE_BYTES)
        following = first + len(found)
        rows = [msgspec.json.decode(content, type=SkippedRow) for content in found]
        return Page(rows, page.token((following,)) if following < total else "")

    async def write(self, pieces: AsyncIterator[Piece]) -> Upload:
        """Append what a caller sends. Whatever ends the call, the bytes that came before are kept.

        Raises OutOfRange with the right offset, Aborted when another call writes, ResourceExhausted when the disk is
        full, FailedPrecondition once it is committed, DeadlineExceeded when the caller is silent or too slow.
        """
        pace = Pace(self._rules.write_idle_seconds, self._rules.write_least_bytes_per_second)
        first = await pace.next(pieces)
        if first is None:
            raise InvalidArgument.of("name", "the first message must name the upload")
        names.parse(names.UPLOAD, first.name)
        identity.authorize(identity.current(), "WriteUpload", first.name)
        async with self._database.transaction() as connection:
            upload = await uploads.get(connection, first.name)
            _check_receiving(upload)
            await uploads.touch(connection, upload.uid, self._rules.expiry_seconds)
        await self._append(upload, first, pieces, pace)
        async with self._database.transaction() as connection:
            await uploads.touch(connection, upload.uid, self._rules.expiry_seconds)
            await self._database.notify(connection, job_topic(upload.name))
        return await self.get(upload.name)

    async def commit(self, name: str) -> Upload:
        """Hand a complete file to the workers; the second time it returns the upload as it stands.

        Raises FailedPrecondition while bytes are missing.
        """
        upload = await self.get(name)
        await asyncio.to_thread(self._staging.sync, upload.uid)
        async with self._database.transaction() as connection:
            # First the dataset: who deletes it must see the job that is made here.
            await datasets.lock_uid(connection, upload.dataset_uid)
            upload = self._with_bytes(await uploads.lock(connection, name))
            if upload.state is UploadState.RECEIVING:
                _check_complete(upload)
                await uploads.mark_committed(connection, upload.uid)
                await self._jobs.create(connection, VALIDATION, name, {"upload": str(upload.uid)})
                await self._database.notify(connection, job_topic(name))
                upload = self._with_bytes(await uploads.get(connection, name))
        return upload

    async def watch(self, name: str) -> AsyncGenerator[Upload | None, None]:
        """The upload now and after each change, until it has ended; None when nothing happened for a while."""
        with self._database.notices.subscribe(job_topic(name), progress_topic(name)) as changed:
            upload = await self.get(name)
            yield upload
            while not upload.ended:
                await wait(changed, self._rules.heartbeat_seconds)
                latest = await self.get(name)
                yield latest if latest != upload else None
                upload = latest

    async def delete(self, name: str) -> None:
        """Throw it away. Raises FailedPrecondition while a worker reads it."""
        names.parse(names.UPLOAD, name)
        async with self._database.transaction() as connection:
            upload = await uploads.lock(connection, name)
            if upload.state is UploadState.VALIDATING:
                raise FailedPrecondition("UPLOAD_VALIDATING", f"{name} is being read; wait until it ends", name=name)
            await uploads.delete(connection, upload)
            await self._database.notify(connection, job_topic(name))
        await asyncio.to_thread(self._staging.remove, upload.uid)

    async def sweep(self) -> int:
        """Throw away what was not committed in time, and files that nobody needs; returns of how many uploads."""
        on_disk = self._staging.uids()
        async with self._database.transaction() as connection:
            await uploads.delete_expired(connection)
            # Files were listed first: one that comes now has a row already.
            unneeded = on_disk - await uploads.needing_bytes(connection, on_disk)
        for uid in unneeded:
            await asyncio.to_thread(self._staging.remove, uid)
        return len(unneeded)

    async def sweep_forever(self) -> None:
        """A worker's routine."""
        with self._database.notices.subscribe(SWEEP_TOPIC) as ended:
            while True:
                with contextlib.suppress(Unavailable):
                    count = await self.sweep()
                    log.log(logging.INFO if count else logging.DEBUG, "removed the files of %d uploads", count)
                await wait(ended, self._rules.sweep_seconds)

    async def _append(self, upload: Upload, first: Piece, pieces: AsyncIterator[Piece], pace: Pace) -> None:
        async with self._staging.writer(upload.uid) as writer:
            if first.offset_bytes != writer.size:
                raise OutOfRange(
                    "WRONG_OFFSET",
                    f"go on at {writer.size} (got {first.offset_bytes})",
                    received_bytes=writer.size,
                )
            piece: Piece | None = first
            position, writing = writer.size, None
            while piece is not None:
                position = _check_piece(upload, piece, position)
                # While one chunk is written the next one arrives.
                if writing is not None and await writing:
                    await self._tell(upload)
                writing = writer.append(piece.chunk)
                metrics.instruments().uploaded.add(len(piece.chunk))
                pace.check(len(piece.chunk), position)
                piece = await pace.next(pieces)
                if piece is not None and piece.name not in ("", upload.name):
                    raise InvalidArgument.of("name", f"one call writes one upload, {upload.name}")
            if writing is not None:
                await writing

    async def _tell(self, upload: Upload) -> None:
        async with self._database.transaction() as connection:
            await self._database.notify(connection, job_topic(upload.name))

    def _check_room(self, upload: Upload) -> None:
        missing, free = upload.size_bytes - upload.received_bytes, self._staging.free_bytes()
        if missing > free:
            raise ResourceExhausted(
                "DISK_FULL",
                f"{missing} bytes are to come and the server has room for {free}",
                missing_bytes=missing,
                free_bytes=free,
            )

    def _with_bytes(self, upload: Upload) -> Upload:
        receiving = upload.state is UploadState.RECEIVING
        return replace(upload, received_bytes=self._staging.size(upload.uid) if receiving else upload.size_bytes)


def _check_receiving(upload: Upload) -> None:
    if upload.state is not UploadState.RECEIVING:
        message = f"{upload.name} is {upload.state}; its bytes are settled"
        raise FailedPrecondition("UPLOAD_COMMITTED", message, name=upload.name, state=upload.state)


def _check_complete(upload: Upload) -> None:
    if upload.received_bytes != upload.size_bytes:
        raise FailedPrecondition(
            "UPLOAD_INCOMPLETE",
            f"{upload.received_bytes} of {upload.size_bytes} bytes have arrived; go on at {upload.received_bytes}",
            received_bytes=upload.received_bytes,
            expected_bytes=upload.size_bytes,
        )


def _check_piece(upload: Upload, piece: Piece, position: int) -> int:
    """Where the next piece goes. Raises InvalidArgument."""
    if len(piece.chunk) > MAX_CHUNK_BYTES:
        raise InvalidArgument.of("chunk", f"must be at most {MAX_CHUNK_BYTES} bytes (got {len(piece.chunk)})")
    end = position + len(piece.chunk)
    if end > upload.size_bytes:
        raise InvalidArgument.of("chunk", f"ends at {end}, beyond the announced {upload.size_bytes} bytes")
    return end
