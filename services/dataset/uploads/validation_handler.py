"""What a worker does with a committed upload: check its hash, read its rows, make a version of them or say why not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from services.dataset.datasets import versions
from services.dataset.datasets.chunks import Content, version_sha256
from services.dataset.datasets.versions import Announce
from services.dataset.entities import Dataset, Upload
from services.dataset.store import datasets, skipped_rows, uploads
from services.dataset.store.versions import NewVersion
from services.dataset.uploads import held_out, sandbox
from services.dataset.uploads.options import UploadOptions, from_json
from services.dataset.uploads.sandbox import HeldOut, Outcome, ReaderDied, Reading, Skipped
from services.dataset.uploads.staging import SWEEP_TOPIC, Staging
from services.mesh.artifacts import references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import PlatformError, Unavailable
from services.mesh.jobs.store import Jobs, Lease, State
from services.mesh.jobs.worker import JobResult, Retry

log = logging.getLogger(__name__)

# Attempts after which a file that kills its readers is given up.
MAX_ATTEMPTS = 3
# The same for workers: a file might get them killed for memory. More, as a worker that is stopped for a new one of
# its kind counts too.
MAX_WORKERS = 10
_RETRY_SECONDS = 1.0
_PROGRESS_SECONDS = 0.5
_HASH_BYTES = 16 * 1024 * 1024


class Rejected(PlatformError):
    """The file makes no version; `reason` and message become the upload's error."""

    code = "INVALID_ARGUMENT"

    def __init__(self, reason: str, message: str, report: dict[str, Any] | None = None) -> None:
        super().__init__(reason, message)
        self.report = report


@dataclass
class Found:
    """What a reader sends on its way."""

    content: Content = field(default_factory=Content)
    held_out: Content = field(default_factory=Content)
    skipped: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class ReaderLimits:
    memory_bytes: int
    cpu_seconds: int


class ValidationHandler:
    """Runs jobs of kind VALIDATION."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        artifacts: CollectingStore,
        staging: Staging,
        limits: ReaderLimits,
        announce: Announce,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._artifacts = artifacts
        self._staging = staging
        self._limits = limits
        self._announce = announce

    async def run(self, lease: Lease, cancelled: asyncio.Event) -> JobResult:
        """Nobody cancels a validation: deleting its dataset takes the lease away."""
        found = Found()
        try:
            attempt, upload, dataset = await self._begin(lease)
            if attempt > MAX_WORKERS:
                raise Rejected("READER_DIED", f"{MAX_WORKERS} workers were lost while they read it")
            return await self._attempt(lease, attempt, upload, dataset, found)
        except Rejected as error:
            return self._rejection(lease, error, found)
        except Unavailable as error:
            raise Retry(str(error), _RETRY_SECONDS) from error

    async def _begin(self, lease: Lease) -> tuple[int, Upload, Dataset]:
        async with self._database.transaction() as connection:
            attempt = await self._jobs.begin_attempt(connection, lease)
            await self._jobs.report(connection, lease, {"validated_row_count": 0})
            upload = await uploads.get(connection, lease.job.name)
            return attempt, upload, await datasets.get(connection, lease.job.parent)

    async def _attempt(self, lease: Lease, attempt: int, upload: Upload, dataset: Dataset, found: Found) -> JobResult:
        path, options = self._staging.path(upload.uid), from_json(upload.options)
        try:
            with self._staging.scratch(upload.uid) as scratch:
                limits = self._limits
                reading = Reading(
                    path, upload.file_name, dataset.format, options, scratch, limits.memory_bytes, limits.cpu_seconds
                )
                outcome = await self._read_and_hash(lease, upload, reading, found)
            _check_rows(outcome, options, found)
            await self._check_split(dataset, options)
            await self._artifacts.put_file(path, upload.sha256)
        except FileNotFoundError:
            raise Rejected("FILE_LOST", "its bytes are no longer on the server; upload it again") from None
        except (ReaderDied, OSError) as error:
            log.warning("attempt %d at %s failed: %s", attempt, upload.name, error, extra={"job": upload.name})
            if attempt < MAX_ATTEMPTS and not (isinstance(error, ReaderDied) and error.final):
                raise Retry(str(error), _RETRY_SECONDS) from error
            raise Rejected("READER_DIED", f"{error}; given up after {attempt} attempts") from error
        return self._success(upload, dataset, found, outcome)

    async def _check_split(self, dataset: Dataset, options: UploadOptions) -> None:
        """Raises Rejected where the dataset of the rows held out has come to be another one."""
        if options.split is None:
            return
        async with self._database.transaction() as connection:
            other = await held_out.find(connection, dataset, options.split)
        if other is not None and other.format != dataset.format:
            message = f"{other.name} holds rows of format {other.format}; take another name for the split"
            raise Rejected("SPLIT_DATASET_DIFFERS", message)

    async def _read_and_hash(self, lease: Lease, upload: Upload, reading: Reading, found: Found) -> Outcome:
        """Both at once: they need a processor each. What the rows are like counts only if the hash is right."""
        hashing = asyncio.create_task(_check_hash(reading.path, upload))
        try:
            outcome = await self._read(lease, reading, found)
            await hashing
        except ReaderDied:
            await hashing  # a file that is not the announced one may well kill its reader
            raise
        finally:
            hashing.cancel()
        return outcome

    async def _read(self, lease: Lease, reading: Reading, found: Found) -> Outcome:
        """Store the rows in chunks, which `found` lists."""
        told, storing = time.monotonic(), None
        try:
            async with contextlib.aclosing(sandbox.read(reading)) as frames:
                async for frame in frames:
                    if isinstance(frame, int):
                        if time.monotonic() - told >= _PROGRESS_SECONDS:
                            told = time.monotonic()
                            await self._tell(lease, frame)
                        continue
                    if isinstance(frame, Skipped):
                        found.skipped.append(frame.content)
                        continue
                    # While one chunk is stored the next one is made.
                    if storing is not None:
                        await storing
                    if isinstance(frame, Outcome):
                        return frame
                    if isinstance(frame, HeldOut):
                        storing = asyncio.create_task(self._store(frame.content, found.held_out))
                    else:
                        storing = asyncio.create_task(self._store(frame, found.content))
        finally:
            if storing is not None:
                storing.cancel()
        raise AssertionError("a reader ends with an outcome or dies")

    async def _store(self, chunk: bytes, content: Content) -> None:
        content.add(await self._artifacts.put_blob(chunk), chunk)

    async def _tell(self, lease: Lease, row_count: int) -> None:
        with contextlib.suppress(Unavailable):  # the next one will tell
            async with self._database.transaction() as connection:
                await self._jobs.report(connection, lease, {"validated_row_count": row_count})

    def _success(self, upload: Upload, dataset: Dataset, found: Found, outcome: Outcome) -> JobResult:
        split, kept = from_json(upload.options).split, _version(upload, dataset, found.content, outcome.statistics)

        async def write(connection: Connection) -> None:
            await references.lock(connection)
            chunks = [*found.content.chunks, *found.held_out.chunks]
            sizes = {chunk.sha256: chunk.size_bytes for chunk in chunks} | {upload.sha256: upload.size_bytes}
            # A dataset of the same rows may have been deleted since they were found to be in the store already.
            if await self._artifacts.absent(sizes):
                raise Retry("its rows were deleted meanwhile with another dataset's", 0)
            version = await versions.add(connection, upload.dataset_uid, kept, self._announce)
            made = (version.name, "")
            if split is not None:
                other = await held_out.ensure(connection, dataset, split)
                if other is None:
                    raise Retry("the dataset of the rows held out was made by somebody else meanwhile", 0)
                rest = _version(upload, dataset, found.held_out, outcome.held_out_statistics or {})
                made = (version.name, (await versions.add(connection, other.uid, rest, self._announce)).name)
            await skipped_rows.write(connection, upload.uid, found.skipped)
            await uploads.write_ending(connection, upload.name, made, outcome.report, outcome.report["row_count"])
            await self._database.notify(connection, SWEEP_TOPIC)

        return JobResult(State.SUCCEEDED, then=write)

    def _rejection(self, lease: Lease, error: Rejected, found: Found) -> JobResult:
        async def write(connection: Connection) -> None:
            rows = (error.report or {}).get("row_count", 0)
            await uploads.write_ending(connection, lease.job.name, ("", ""), error.report, rows)
            stored = [*found.content.chunks, *found.held_out.chunks]
            await references.release(connection, [chunk.sha256 for chunk in stored])
            await self._database.notify(connection, SWEEP_TOPIC)

        return JobResult(State.FAILED, error, write)


def _version(upload: Upload, dataset: Dataset, content: Content, statistics: dict[str, Any]) -> NewVersion:
    return NewVersion(
        sha256=version_sha256(dataset.format, content.chunks),
        format=dataset.format,
        row_count=content.row_count,
        size_bytes=content.size_bytes,
        statistics=statistics,
        source_sha256=upload.sha256,
        source_file_name=upload.file_name,
        chunks=content.chunks,
    )


def _check_rows(outcome: Outcome, options: UploadOptions, found: Found) -> None:
    """Raises Rejected unless as many rows are valid as must be."""
    if outcome.error_reason:
        raise Rejected(outcome.error_reason, outcome.error_message)
    report = outcome.report
    invalid, rows = report["invalid_row_count"], report["row_count"]
    tolerated = options.tolerated(rows)
    if invalid > tolerated or invalid == rows:
        first = report["findings"][0]
        where = f"row {first['row']}" + (f", {first['field']}" if first["field"] else "")
        bound = f", {tolerated} may be" if options.skips_invalid and invalid > tolerated else ""
        message = f"{invalid} of {rows} rows are not valid{bound}; the first: {where}: {first['message']}"
        raise Rejected("INVALID_ROWS", message, report)
    if options.split is not None and not (found.held_out.row_count and found.content.row_count):
        side = "of the rest" if found.held_out.row_count else options.split.name
        message = f"the split leaves none of {rows - invalid} rows to the side {side}; change its share or seed"
        raise Rejected("EMPTY_SPLIT", message, report)


async def _check_hash(path: Path, upload: Upload) -> None:
    """Raises Rejected when the file is not the one that was announced."""
    digest = hashlib.sha256()

    def step(file: BinaryIO) -> bool:
        data = file.read(_HASH_BYTES)
        digest.update(data)
        return bool(data)

    with await asyncio.to_thread(path.open, "rb") as file:
        while await asyncio.to_thread(step, file):
            pass
    if digest.hexdigest() != upload.sha256:
        message = f"the bytes that came have SHA-256 {digest.hexdigest()}, announced was {upload.sha256}"
        raise Rejected("WRONG_HASH", message)
