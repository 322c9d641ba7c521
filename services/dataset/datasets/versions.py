"""Versions: immutable rows, addressed by what they hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from services.dataset.datasets.chunks import Chunk, raw_rows
from services.dataset.entities import DatasetVersion
from services.dataset.store import datasets, versions
from services.dataset.store.versions import NewVersion
from services.mesh import names
from services.mesh.artifacts import ArtifactStore, references
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import DataLoss, InvalidArgument, NotFound, OutOfRange
from services.mesh.rpc.pagination import Page, PageRequest

# A page of rows ends once it holds this much.
MAX_PAGE_BYTES = 2 * 1024 * 1024
# Of one message of a download.
MAX_PIECE_BYTES = 1024 * 1024
LATEST = "latest"


@dataclass(frozen=True)
class StoredRow:
    """`json` is the canonical row; `row_index` counts from 0."""

    row_index: int
    json: bytes


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of a version; `offset_bytes` is where they stand in the whole."""

    offset_bytes: int
    chunk: bytes


# Writes the event of a new version.
Announce = Callable[[Connection, DatasetVersion], Awaitable[None]]


async def add(connection: Connection, dataset_uid: UUID, new: NewVersion, announce: Announce) -> DatasetVersion:
    """The next version of a dataset, or its newest one when that holds the same rows; it holds its blobs.

    Numbers have no gaps: the dataset's row is locked until the transaction ends.
    """
    await references.lock(connection)
    dataset = await datasets.lock_uid(connection, dataset_uid)
    latest = await versions.get(connection, dataset_uid, dataset.version_count)
    if latest is not None and latest.sha256 == new.sha256:
        # The file may be another one with the same rows: it was stored for nothing.
        await references.release(connection, [new.source_sha256])
        return latest
    number = dataset.version_count + 1
    name = names.child(dataset.name, "versions", str(number))
    version = await versions.insert(connection, dataset_uid, number, name, new)
    await references.add_content(connection, name, new.sha256, [chunk.sha256 for chunk in new.chunks])
    await references.add(connection, name, new.source_sha256)
    await datasets.count_version(connection, dataset_uid, number)
    await announce(connection, version)
    return version


class Versions:
    """Use cases: reading."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    async def get(self, name: str, field: str = "name") -> DatasetVersion:
        """By number, or the newest one as `versions/latest`. Raises InvalidArgument, NotFound."""
        ids = names.parse(names.DATASET_VERSION, name, field)
        async with self._database.transaction() as connection:
            dataset = await datasets.get(connection, name.rsplit("/", 2)[0])
            number = dataset.version_count if ids["version"] == LATEST else _number(ids["version"], field)
            version = await versions.get(connection, dataset.uid, number)
        if version is None:
            raise NotFound("VERSION_NOT_FOUND", f"there is no {name}", name=name)
        return version

    async def list_(self, parent: str, page: PageRequest) -> Page[DatasetVersion]:
        """Newest first. Raises NotFound for the dataset."""
        names.parse(names.DATASET, parent, "parent")
        async with self._database.transaction() as connection:
            dataset = await datasets.get(connection, parent)
            found = await versions.list_(connection, dataset.uid, page)
        return page.page(found, lambda version: (version.number,))

    async def rows(self, parent: str, page: PageRequest, first_row_index: int) -> Page[StoredRow]:
        """Rows in order; a page ends early at MAX_PAGE_BYTES. Raises DataLoss when stored bytes have changed.

        The token holds the version's number, so that pages of `versions/latest` stay with the version they began with.
        """
        if first_row_index < 0:
            raise InvalidArgument.of("first_row_index", f"must not be negative (got {first_row_index})")
        number, position = _place(page, first_row_index)
        names.parse(names.DATASET_VERSION, parent, "parent")
        name = parent if number is None else names.child(parent.rsplit("/", 2)[0], "versions", str(number))
        version = await self.get(name, "parent")
        found = await self._read_rows(version, position, page.size)
        following = position + len(found)
        more = following < version.row_count and found
        return Page(found, page.token((version.number, following)) if more else "")

    async def download(self, name: str, offset_bytes: int) -> AsyncGenerator[Piece, None]:
        """The canonical rows as JSON lines, from a byte on. Each chunk is verified before its first byte is sent.

        Raises OutOfRange, DataLoss when stored bytes have changed.
        """
        if offset_bytes < 0:
            raise InvalidArgument.of("offset_bytes", f"must not be negative (got {offset_bytes})")
        version = await self.get(name)
        if offset_bytes > version.size_bytes:
            message = f"{version.name} has {version.size_bytes} bytes (asked for {offset_bytes})"
            raise OutOfRange("OUTSIDE_OF_VERSION", message, size_bytes=version.size_bytes)
        position = offset_bytes
        while position < version.size_bytes:
            async with self._database.transaction() as connection:
                chunk = await versions.chunk_with_byte(connection, version, position)
            content = await self._content(version, chunk)
            for start in range(position - chunk.first_byte, len(content), MAX_PIECE_BYTES):
                piece = content[start : start + MAX_PIECE_BYTES]
                yield Piece(chunk.first_byte + start, piece)
            position = chunk.first_byte + chunk.size_bytes

    async def _read_rows(self, version: DatasetVersion, position: int, size: int) -> list[StoredRow]:
        found: list[StoredRow] = []
        room = MAX_PAGE_BYTES
        while len(found) < size and (at := position + len(found)) < version.row_count:
            async with self._database.transaction() as connection:
                chunk = await versions.chunk_with_row(connection, version, at)
            lines = raw_rows(await self._content(version, chunk))
            for line in lines[at - chunk.first_row :][: size - len(found)]:
                room -= len(line)
                if room < 0 and found:
                    return found
                found.append(StoredRow(position + len(found), line))
        return found

    async def _content(self, version: DatasetVersion, chunk: Chunk) -> bytes:
        try:
            return await self._artifacts.read_blob(chunk.sha256)
        except NotFound:
            message = f"rows {chunk.first_row} and on of {version.name} are missing from the artifact store"
            raise DataLoss("MISSING_ARTIFACT", message, name=version.name, sha256=chunk.sha256) from None


def _number(text: str, field: str) -> int:
    if not text.isdecimal():
        raise InvalidArgument.of(field, f"must end in a version's number or {LATEST} (got {text!r})")
    return int(text)


def _place(page: PageRequest, first_row_index: int) -> tuple[int | None, int]:
    """(version number that the pages began with, row to start at)."""
    if page.after is None:
        return None, first_row_index
    match page.after:
        case (int(number), int(row_index)) if number > 0 and row_index >= 0:
            return number, row_index
    raise InvalidArgument.of("page_token", "is not a token that a list returned")
